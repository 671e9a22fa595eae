"""Folders of `sample.py` that are gone on with, and images given to it."""

import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rfdit.eval.records import read_records
from rfdit.generate.outputs import eval_files
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference
from tests.support.training.checkpoints import write_checkpoint
from tests.system.drill.kind import Kind, digest_files, run

SAMPLE = ["ckpt=run.ckpt", "accelerator=cpu", "precision=fp32", "sampler.steps=1", "prompts=[a red circle]", "total=6",
          "batch_size=2", "out=out"]  # fmt: skip


def sample(*arguments: str) -> dict[str, str]:
    run("sample", *SAMPLE, *arguments)
    return digest_files("out/**/*", without=["environment.jsonl"])


def make(*arguments: str) -> None:
    write_checkpoint(Path("run.ckpt"))
    sample(*arguments)


def make_parts() -> None:
    """The parts of an array that is not finished."""
    write_checkpoint(Path("run.ckpt"))
    with unittest.mock.patch("shutil.rmtree"):
        sample("output=npz", "output.images_per_part=2")
    for file in Path("out").glob("*samples.npz*"):
        file.unlink()


def make_evaluated() -> None:
    """The rows of an evaluation that is not finished."""
    write_checkpoint(Path("run.ckpt"))
    write_reference(Path("reference.npz"))
    with unittest.mock.patch("rfdit.generate.outputs.eval_files.EvaluationFiles.remove"):
        evaluate()
    Path("evaluations.jsonl").unlink()


def evaluate() -> Any:
    eval_files.IMAGES_PER_FILE = 8  # so that there are several files
    run("sample", "ckpt=run.ckpt", "accelerator=cpu", "precision=fp32", "sampler.steps=1", "batch_size=4",
        *tiny_eval("reference.npz"))  # fmt: skip
    return read_records(Path())[-1]["values"]


def make_pictures() -> None:
    write_checkpoint(Path("run.ckpt"))
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save("image.png")
    Image.fromarray((pixels > 100).astype(np.uint8)[..., 0] * 255).save("mask.png")
    Image.fromarray(pixels).save("image.jpg")
    Image.fromarray(pixels).save("image.tif")


def inpaint(name: str) -> dict[str, str]:
    return sample("use=inpaint", f"use.image={name}", "use.mask=mask.png", "output=npz")


KINDS = [
    Kind(
        "tar outputs",
        lambda: make("output=tar", "output.images_per_shard=2"),
        lambda: sample("output=tar", "output.images_per_shard=2"),
        ["out/*", "out/.*"],
        weight=2,
    ),
    Kind(
        "array outputs",
        lambda: make("output=npz", "output.images_per_part=2"),
        lambda: sample("output=npz", "output.images_per_part=2"),
        ["out/*", "out/.*"],
    ),
    Kind(
        "parts of array outputs",
        make_parts,
        lambda: sample("output=npz", "output.images_per_part=2"),
        ["out/**/*", "out/**/.*"],
        weight=2,
    ),
    Kind("PNG outputs", make, sample, ["out/*"], weight=0.5),
    Kind(
        "rows of an evaluation",
        make_evaluated,
        evaluate,
        ["evaluations/*/*", "evaluations/*/.*", "reference.npz"],
        weight=2,
    ),
    Kind(
        "image to inpaint",
        make_pictures,
        lambda: inpaint("image.png"),
        ["image.png", "mask.png"],
        guarded=False,
    ),
    Kind(
        "JPEG to inpaint",
        make_pictures,
        lambda: inpaint("image.jpg"),
        ["image.jpg"],
        guarded=False,
        weight=0.5,
    ),
    Kind(
        "TIFF to inpaint",
        make_pictures,
        lambda: inpaint("image.tif"),
        ["image.tif"],
        guarded=False,
        weight=0.5,
    ),
]
