"""What a run says while it trains."""

import re
from pathlib import Path

import pytest

from rfdit.callbacks.progress import speed
from tests.support.commands.command_line import CommandLine

GRID = "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, count: 1}"
LINES = [
    r"training: 1 of 3 steps, 33%  elapsed \d:\d\d  remaining \d:\d\d  loss \d\.\d{4}  lr 1\.98e-05(  .* images/s.*)?",
    r"step 2  checkpoint: run/checkpoints/last\.ckpt \(\d+\.\d s\)",
    r"step 2  validation: val/loss \d\.\d{4} \(\d+\.\d s\)",
    r"step 2  checkpoint: run/checkpoints/best\.ckpt \(\d+\.\d s\)",
    r"training: 3 of 3 steps, 100%  elapsed .*  loss \d\.\d{4}  val \d\.\d{4}  lr .*",
    r"step 3  grid: run/samples/step_00000003\.png \(\d+\.\d s\)",
    r"done: 3 steps; .*",
]


def test_lines_on_the_screen_and_in_the_log(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rfdit.progress.LINE_SECONDS", 0.0)
    cli.train(
        "run_dir=run", "trainer.val_every_n_steps=2", "trainer.limit_val_batches=1", GRID, "sampler.steps=1",
        "callbacks.checkpoints.every_n_steps=2",
    )  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    for line in LINES:
        assert any(re.fullmatch(line, found) for found in printed), (line, printed)
    logged = [line[len("2026-01-01 00:00:00  ") :] for line in Path("run/log.txt").read_text().splitlines()]
    assert logged == printed


@pytest.mark.parametrize(
    ("images", "steps", "seconds", "texts"),
    [
        (640, 20, 2.0, ["320 images/s"]),
        (64, 2, 20.0, ["3.2 images/s", "10.0 s/step"]),
        (32, 1, 90.0, ["0.36 images/s", "1:30 a step"]),
        (0, 0, 5.0, []),
    ],
)
def test_speed(images: int, steps: int, seconds: float, texts: list[str]) -> None:
    assert speed(images, steps, seconds) == texts
