"""The backbone of docs/do/own_backbone.md trains and samples, from the files that the page shows."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rfdit
from rfdit.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs/do/own_backbone.md").read_text()
FILES = re.findall(r'```\w+ title="(.*?)"\n(.*?)```', PAGE, re.DOTALL)
QUICK = [
    "data.batch_size=2", "data.num_workers=0", "data.shards.samples=512", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1", "trainer.val_every_n_steps=2", "trainer.limit_val_batches=1",
    "callbacks.grid=null", "logger.tensorboard=null",
]  # fmt: skip
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, shapes_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of the page in a folder with its files."""
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mynets/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shapes_cache))

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["rfdit", *arguments])
        main()

    return command


def test_it_is_planned_trained_and_sampled(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = ["--config-dir=conf", "experiment=convnet"]
    run("plan", *experiment, "peak_tflops=1")
    run(
        "train",
        *experiment,
        *QUICK,
        "run_dir=run",
        "trainer.max_steps=2",
        "callbacks.evaluate.every_n_steps=2",
    )
    assert "model     ConvNet, " in capsys.readouterr().out
    run(
        "sample",
        "ckpt=run",
        "prompts=[a red circle]",
        "packages=[mynets]",
        "accelerator=cpu",
        "sampler.steps=2",
        "out=images",
    )
    assert Path("images/00000.png").exists()


def test_python_does_the_same(run: Run) -> None:
    config = rfdit.compose("train", ["experiment=convnet", "run_dir=run", *QUICK], config_dir="conf")
    config.model.channels, config.trainer.max_steps = 64, 2
    done = rfdit.train(config)
    assert (done.step, done.folder) == (2, Path("run"))
    model = rfdit.load(done.folder, packages=["mynets"], accelerator="cpu")
    assert re.fullmatch(
        r"Model\(ConvNet of [\d,]+ parameters, captions to 32x32 images, step 2 of run\)", repr(model)
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("size=xl", r"model\.width is not a setting of ConvNet; write size=none to leave it to the model"),
        (
            "patch=p2",
            r"model\.patch_size is not a setting of ConvNet; write patch=none to leave it to the model",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(run: Run, override: str, sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence):
        run("train", "--config-dir=conf", "experiment=convnet", override)
