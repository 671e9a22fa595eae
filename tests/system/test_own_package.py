"""A backbone, an objective, a data source and a metric of a package outside the checkout, named by `_target_` alone."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rfdit.__main__ import main

# As a user writes it: the package that docs/do/own_parts.md shows, file by file.
PAGE = (Path(__file__).parents[2] / "docs/do/own_parts.md").read_text()
FILES = dict(re.findall(r'```\w+ title="(.*?)"\n(.*?)```', PAGE, re.DOTALL))
TRAIN = [
    "--config-dir=conf", "run_dir=run", "model=mixer", "~size", "objective=data_matching", "data=ramps",
    "conditioner=labels", "conditioner.num_classes=2", "optimizer.lr=1e-3", "trainer.max_steps=2",
    "trainer.val_every_n_steps=2", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
    "data.num_workers=0", "callbacks.grid=null", "callbacks.throughput=null", "logger.tensorboard=null",
]  # fmt: skip
SAMPLE = ["ckpt=run", "labels=[0,1]", "accelerator=cpu", "sampler.steps=2", "out=images"]


Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder with the package, which Python finds, and its options of our groups."""
    for name, text in ({"mine/__init__.py": ""} | FILES).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for shard in ("one.ramp", "two.ramp"):
        (tmp_path / shard).write_text("16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command(*arguments: str) -> None:
        for module in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "argv", ["rfdit", *arguments])
        main()

    return command


@pytest.mark.slow
def test_they_are_planned_for(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The backbone has no setting for depth or recomputation, so its activations are those of one choice."""
    settings = [setting for setting in TRAIN if not setting.startswith("run_dir")]
    run("plan", *settings, "peak_tflops=1", "json=true")
    plan = json.loads(capsys.readouterr().out)
    # Three layers in and out of 768 numbers, two blocks, and a table of two classes and null.
    assert plan["parameters"] == (3 * 64 + 2 + 1) * 16 + 2 * (16 + 1) * 16 + (16 + 1) * 3 * 64 + 3 * 16
    assert list(plan["activations_gb"]) == ["none"]
    assert 0 < plan["activations_gb"]["none"] == plan["memory_gb"]["activations"]


def test_they_train_and_sample(run: Run) -> None:
    run("train", *TRAIN)
    logged = set(Path("run/metrics.csv").read_text().splitlines()[0].split(","))
    assert {"train/loss", "train/squared", "train/robust", "val/loss"} <= logged
    with pytest.raises(SystemExit, match=r"model\._target_=mine\.backbone\.Mixer is .*packages="):
        run("sample", *SAMPLE)
    run("sample", *SAMPLE, "packages=[mine]")
    assert {path.name for path in Path("images").glob("0*.png")} == {"00000.png", "00001.png"}


@pytest.mark.slow
def test_adapters_beside_their_layers(run: Run) -> None:
    run("train", *TRAIN)
    lora = [
        "init=weights",
        "init.ckpt=run",
        "adapter=lora",
        "adapter.targets=(inside|outside)",
        "run_dir=lora",
    ]
    run("train", *TRAIN, *lora)
    run("sample", "ckpt=lora", *SAMPLE[1:], "packages=[mine]")
    run("sample", "ckpt=run", "adapters=[lora]", "out=added", *SAMPLE[1:-1], "packages=[mine]")
    assert Path("images/00000.png").exists()
    assert Path("added/00000.png").exists()
    run("export", "ckpt=lora", "out=merged", "packages=[mine]")
    run("export", "ckpt=lora", "out=adapter", "format=peft")
    run("train", *TRAIN, "init=weights", "init.ckpt=adapter", "init.packages=[mine]", "run_dir=further")


def test_their_metric_measures(run: Run) -> None:
    run("train", *TRAIN)
    tiny = "eval.network._target_=tests.support.evaluation.tiny_features.TinyFeatures"
    settings = ["eval=spread", "eval.samples=4", "eval.network.outputs=[pool]", tiny]
    run("sample", "--config-dir=conf", "ckpt=run", *settings, *SAMPLE[2:], "packages=[mine]")
    (record,) = map(json.loads, Path("run/evaluations.jsonl").read_text().splitlines())
    assert record["values"]["spread"] > 0


def test_a_backbone_says_what_others_rely_on(run: Run) -> None:
    file = Path("mine/backbone.py")
    renamed = file.read_text().replace("self.blocks", "self.others")
    file.write_text(renamed.replace("self.patch_size, self.width =", "_ ="))
    message = (
        r"model\._target_=mine\.backbone\.Mixer has no blocks, patch_size, width; rfdit\.protocols\.Backbone"
    )
    with pytest.raises(SystemExit, match=message):
        run("train", *TRAIN)
