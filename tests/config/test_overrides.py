"""What is typed on a command line, and what arrives."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from rfdit.config.build import CONFIG_DIR
from rfdit.config.errors import sentence
from rfdit.config.overrides import quoted, setting, typed_program, understood
from rfdit.config.schemas import text_settings

ODD = ["lr=1e-3,bs=4", "my run (2)", "o'neil", 'say "hi"', "a\\", "\\${x}", "${x}", "Bücher/猫", "007", "null",
       "1_0", "a\\'b", "{0..9}", "~", "[a]", "a: b", "", "100% & more!", "#1"]  # fmt: skip
AS_TYPED = {
    "prompts=[ein schönes Haus, 猫]": ["ein schönes Haus", "猫"],
    "prompts=[a cat & a dog!, it's 50% off]": ["a cat & a dog!", "it's 50% off"],
    "prompts=[a cat (cute:1.2), best]": ["a cat (cute:1.2)", "best"],
    "prompts=['one, two', a [big] three!]": ["one, two", "a [big] three!"],
    "prompts=[null, 1.10, 1e3, true, a]": ["null", "1.10", "1e3", "true", "a"],
    "prompts=a red circle, small": "a red circle, small",
    "prompts=[null, b!]": ["null", "b!"],
    "prompts=[[a]]": [["a"]],
    "negative=1.10": "1.10",
    "negative=null": None,
    "ckpt=runs/patch=p2,size=s": "runs/patch=p2,size=s",
    "run_dir=2024_01": "2024_01",
    "run_dir=runs/my run (2)": "runs/my run (2)",
    "run_dir=~/runs/a": "~/runs/a",
    "run_dir=runs/lr=${optimizer.lr}": "runs/lr=${optimizer.lr}",  # stays an interpolation
    "data.shards=/Bücher/year=2024/{00..99}.tar": "/Bücher/year=2024/{00..99}.tar",
    "data.shards=[/year=2024/0.tar,/1.tar]": ["/year=2024/0.tar", "/1.tar"],
    "scales=[1,2.5]": [1, 2.5],
    "seed=1": 1,
}


def arrives(typed: str, *, sweep: bool = False) -> object:
    texts = {*text_settings("sample"), *text_settings("train")}
    [override] = understood([typed], texts=texts, groups=CONFIG_DIR, sweep=sweep)
    [parsed] = OverridesParser.create().parse_overrides([override])
    return list(parsed.sweep_iterator()) if parsed.is_sweep_override() else parsed.value()


@pytest.mark.parametrize(("typed", "arrived"), AS_TYPED.items(), ids=AS_TYPED)
def test_what_is_typed_arrives(typed: str, arrived: object) -> None:
    assert arrives(typed) == arrived


@pytest.mark.parametrize("text", ODD)
def test_a_printed_setting_can_be_typed(text: str) -> None:
    [typed] = shlex.split(shlex.join([setting("ckpt", text)]))
    config = OmegaConf.create({"ckpt": arrives(typed), "prompts": arrives(f"prompts=[{quoted(text)},b!]")})
    assert OmegaConf.to_container(config, resolve=True) == {"ckpt": text, "prompts": [text, "b!"]}


def test_commas_divide_in_a_sweep_only() -> None:
    assert arrives("ckpt=a,b", sweep=True) == ["a", "b"]
    assert arrives("ckpt=a,b") == "a,b"


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("prompts=[a (red, blue) cat]", """'prompts=["a (red, blue) cat"]'"""),
        ('prompts=[a "big" cat]', """'prompts=["a \\"big\\" cat"]'"""),
        ("prompts=[a", "'prompts=[...]'"),
        ("red", "'prompts=[a red circle]'"),
    ],
)
def test_what_has_several_meanings_is_told_with_the_form_to_type(typed: str, instead: str) -> None:
    with pytest.raises(OverrideParseException) as error:
        arrives(typed)
    assert sentence(error.value, "sample").endswith(instead)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.shards=a/0.tar", "data.shards=a/1.tar"], "data.shards is given twice"),
        (["patch=4"], "patch=4 is not an option; did you mean patch=p4?"),
        (["spikes=null"], "leave spikes out, or write ~spikes to remove it"),
    ],
)
def test_misread_settings_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        understood(arguments, texts=(), groups=CONFIG_DIR)


def test_a_number_may_be_given_twice() -> None:
    assert understood(["seed=1", "seed=2"], texts=(), groups=CONFIG_DIR) == ["seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["train.py", "size=s"], ["python", "train.py"]),
        (["rfdit train", "size=s"], ["rfdit", "train"]),
        (["rfdit train", "--config-dir=conf", "size=s"], ["rfdit", "train", "--config-dir=conf"]),
    ],
)
def test_a_command_to_resume_with_is_the_one_that_was_typed(
    argv: list[str], program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert typed_program() == program
