"""`rfdit COMMAND --help` says what there is, and answers without importing anything heavy."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rfdit.__main__ import COMMANDS, run
from rfdit.config.build import CONFIG_DIR, register
from rfdit.config.described import describe, header
from rfdit.config.help import help_text
from rfdit.differences import walk
from tests.support.commands.composing import composed

FIRST = {"report": "runs", "data": "data.shards"}  # what an argument without a name is


def examples(command: str) -> list[str]:
    return header((CONFIG_DIR / f"{command}.yaml").read_text())[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_three_examples_of_the_command_itself(command: str) -> None:
    text = help_text(command)
    assert len(examples(command)) == 3
    for example in examples(command):
        assert f"rfdit {command} " in example
        assert example in text


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_examples_compose(command: str) -> None:
    for example in examples(command):
        _, _, typed = example.partition(f"rfdit {command} ")
        words = shlex.split(typed)
        if "-m" not in words:
            assert composed(command, *(word if "=" in word else f"{FIRST[command]}={word}" for word in words))


@pytest.mark.parametrize(
    ("command", "options"),
    [("train", {"model": "dit", "spikes": "median", "eval": "quick"}), ("sample", {"use": "inpaint"})],
)
def test_settings_are_those_that_hydra_composes(command: str, options: dict[str, str]) -> None:
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(command, overrides=[f"{group}={option}" for group, option in options.items()])
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    described = describe(command, options)
    composed_settings = {path: value for path, value in walk(config) if not isinstance(value, dict)}
    for name, setting in described.settings.items():
        if setting.default and name in composed_settings and name not in described.groups:
            default: Any = OmegaConf.to_container(OmegaConf.create(f"x: {setting.default}"), resolve=False)
            assert default["x"] == composed_settings[name], name
    in_flow = tuple(f"{n}." for n, setting in described.settings.items() if setting.default.startswith("{"))
    named = described.settings.keys() | described.groups.keys()  # a group may have no option
    missing = [path for path in composed_settings if path not in named]
    assert [path for path in missing if not path.startswith(in_flow)] == []


def test_what_is_chosen_is_described(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "model=dit", "experiment=demo", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    run("train")
    printed = capsys.readouterr().out
    assert "usage: rfdit train [GROUP=OPTION] [SETTING=VALUE], also python train.py\n" in printed
    assert re.search(r"^  model=dit +network \(also dit_adaln,", printed, re.M)
    assert "\n  optimizer=muon " in printed  # by the experiment
    assert "\n  trainer.budget_max_steps=600 " in printed
    monkeypatch.setattr(sys, "argv", ["train.py", "model=unet", "--help"])
    with pytest.raises(
        SystemExit, match=r"^error: model=unet does not exist; choose from dit, dit_adaln, .*, mmdit$"
    ):
        run("train")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['rfdit', 'train', '--help']; from rfdit.__main__ import main; main();"
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.endswith("\n[]\n")
