"""The commands of the README and of the first hour do what the text beside them says."""

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.support.commands.command_line import CommandLine
from tests.support.commands.composing import composed
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference
from tests.support.training.runs import Trained

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIRST_HOUR = (ROOT / "docs/first_hour.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README + FIRST_HOUR, re.DOTALL)
LINES = dict.fromkeys(line.partition(" #")[0].rstrip() for block in BLOCKS for line in block.splitlines())
COMMANDS = [line for line in LINES if line.startswith("python ") and "--cfg" not in line]
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
    "compile=false",
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
        composed("train", *words)
        return
    cli.train(*QUICK, *words)
    assert list(Path().glob("outputs/**/last.ckpt"))


@pytest.mark.parametrize("words", SAMPLE, ids=lambda words: " ".join(words)[:60])
def test_sample_commands(cli: CommandLine, words: list[str], trained: Trained) -> None:
    run = Path(next(word for word in words if word.startswith("ckpt=")).removeprefix("ckpt="))
    run.parent.mkdir(parents=True, exist_ok=True)
    trained().rename(run)
    Path("docs").symlink_to(ROOT / "docs")
    if "eval=quick" in words:  # with another network, since Inception's weights are a download
        write_reference(Path("shapes.npz"))
        words = [*words, *(word for word in tiny_eval("shapes.npz") if word not in words)]
    printed = cli.sample(*words, "sampler.steps=1")
    assert ("quick: fid=" if "eval=quick" in words else "images in ") in printed


def test_make_targets_are_the_makefiles() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(BLOCKS), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
