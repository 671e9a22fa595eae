"""What a run is, before its first step, and a warning for each setting that costs an evening."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfdit.callbacks.start.traps import Start, traps
from rfdit.data.stream.description import DataDescription
from tests.support.commands.command_line import CommandLine
from tests.support.data.captioned import write_form

DATA = DataDescription(
    samples=1000, epoch=1000, val_samples=100, left_out={}, size=(32, 32), batch_size=16, num_workers=2
)
START = Start(
    data=DATA, tokens=64, downsampling=1, reads_captions=True, batch=32, monitors=["val/loss"], validates=True
)


def test_a_run_without_a_trap_is_not_warned_of() -> None:
    assert list(traps(START)) == []
    assert list(traps(replace(START, data=None))) == []


@pytest.mark.parametrize(
    ("start", "data", "sentence"),
    [
        (
            {"tokens": 4096},
            {},
            "an image has 4,096 tokens, since autoencoder=identity .*autoencoder=sd it has 64,",
        ),
        ({}, {"captions": "captions are class names"}, "captions are class names$"),
        ({}, {"val_samples": None}, r"without data\.val_shards there is no val/loss, and no best\.ckpt"),
        ({"batch": 1001}, {}, r"a step takes 1,001 samples, more than the 1,000 samples of data\.shards"),
        (
            {},
            {"num_workers": 64},
            r"data\.num_workers=64 is more than the 1,000 samples .* by data\.batch_size=16, .*: give 63$",
        ),
    ],
)
def test_each_trap_names_its_setting(start: dict[str, Any], data: dict[str, Any], sentence: str) -> None:
    (found,) = traps(replace(START, data=replace(DATA, **data), **start))
    assert re.match(sentence, found)


@pytest.mark.parametrize(
    ("start", "data"),
    [
        ({"tokens": 4096, "downsampling": 8}, {}),
        ({"reads_captions": False}, {"captions": "captions are class names"}),
        ({"monitors": []}, {"val_samples": None}),
        ({"validates": False}, {"val_samples": None}),
    ],
)
def test_a_setting_that_is_meant_is_not_warned_of(start: dict[str, Any], data: dict[str, Any]) -> None:
    assert list(traps(replace(START, data=replace(DATA, **data), **start))) == []


def test_the_summary_comes_before_the_first_step(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    write_form(
        "texts", Path("own"), [f"a caption of number {n}, which is far too long for it" for n in range(3)]
    )
    cli.train(
        "run_dir=run", "data=folder", "data.shards=own", "data.resolution=16", "text_encoder.length=8",
        "trainer.val_every_n_steps=2", "trainer.accumulate_grad_batches=2",
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "own has 3 captioned images: 3 .png"
    assert lines[1] == "data      3 samples, an epoch of 1 step; no validation"
    assert lines[2].startswith("model     MMDiT, ")
    assert "a block has twice those of model=dit" in lines[2]
    assert lines[2].endswith(" GMACs")
    assert "; an image has 16 tokens and takes " in lines[2]
    assert lines[3].startswith("device    CPU with ")
    assert lines[4] == "batch     8 images a step (4 x 2 accumulated)"
    assert lines[5] == "training  in run from step 0 to 3; checkpoints, metrics and images go there"
    assert lines[6].startswith("warning: a step takes 8 samples, more than the 3 samples")
    assert lines[7].startswith("warning: without data.val_shards there is no val/loss")
    assert lines[8].startswith(
        "warning: 100.0% of the first 4 captions are longer than text_encoder.length=8 tokens"
    )


def test_class_folders_as_captions_are_warned_of(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("n01", "n02"):
        write_form("texts", Path("tree", name), ["x", "y"])
    cli.train("run_dir=run", "data=imagenet", "data.shards=tree", "data.resolution=16")
    assert (
        "warning: captions are the names of the class folders, such as n01: give" in capsys.readouterr().out
    )
