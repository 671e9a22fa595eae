"""The README's commands do what stands beside them."""

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.eval.small_evaluation import tiny_eval, write_reference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python ")]
TRAIN = [shlex.split(c)[2:] for c in COMMANDS if c.startswith("python train.py")]
SAMPLE = [shlex.split(c)[2:] for c in COMMANDS if c.startswith("python sample.py")]

# What costs time is made small; what the command is about stays.
QUICK = [
    "model.width=24",
    "model.depth=2",
    "model.num_heads=2",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.max_steps=2",
    "callbacks.throughput=null",
    "callbacks.grid=null",
]


def expanded(words: list[str], assets: Path | None) -> list[str]:
    place = str(assets) if assets else os.environ.get("RFDIT_TEST_ASSETS", "")
    return [word.replace("$RFDIT_TEST_ASSETS", place) for word in words]


def test_there_are_commands() -> None:
    assert len(TRAIN) >= 6
    assert len(SAMPLE) >= 3


@pytest.mark.parametrize("words", [w for w in TRAIN if "-m" not in w], ids=lambda words: " ".join(words)[:60])
def test_train_commands(cli: CommandLine, words: list[str], request: pytest.FixtureRequest) -> None:
    assets = request.getfixturevalue("assets") if "RFDIT_TEST_ASSETS" in " ".join(words) else None
    words = expanded(words, assets)
    if "ckpt=last" in words:
        cli.train(*[word for word in words if word != "ckpt=last"], *QUICK)
        words = [*words, "trainer.max_steps=3"]
    if "autoencoder=sd" in words:  # needs downloads; what can be shown here is that it composes
        from tests.test_config import composed

        composed("train", *words)
        return
    cli.train(*QUICK, *words)
    assert list(Path().glob("outputs/**/last.ckpt"))


@pytest.mark.parametrize("words", SAMPLE, ids=lambda words: " ".join(words)[:60])
def test_sample_commands(cli: CommandLine, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = next(word for word in words if word.startswith("ckpt=")).removeprefix("ckpt=")
    cli.train(f"run_dir={run}")
    Path("docs").symlink_to(ROOT / "docs")
    if "eval=quick" in words:  # with another network, since Inception's weights are a download
        write_reference(Path("shapes.npz"))
        words = [*words, *(word for word in tiny_eval("shapes.npz") if word not in words)]
    printed = cli.sample(*words, "sampler.steps=1")
    assert ("quick: fid=" if "eval=quick" in words else "pictures in") in printed


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_make_targets_are_the_makefiles() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(BLOCKS), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
