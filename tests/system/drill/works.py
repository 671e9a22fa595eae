"""Every command that writes files, with work of a second or two."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rfdit.checkpoint.saved_run import read_checkpoint, read_raw
from rfdit.eval.records import read_records
from rfdit.pretrained.frozen import state_digest
from rfdit.run.folder import read_metrics
from tests.support.commands.processes import SETTINGS
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference
from tests.support.training.checkpoints import write_checkpoint
from tests.system.drill.kills import Work
from tests.system.drill.kind import digest
from tests.system.drill.kinds.data import ENCODE, PACK, make_folder, make_shards
from tests.system.drill.kinds.evaluation import TINY
from tests.system.drill.kinds.models import POWER, make_published, make_run
from tests.system.drill.kinds.runs import make_runs
from tests.system.drill.kinds.tables import make_text

STEPS = 8
TRAIN = ["run_dir=run", *SETTINGS, "data.batch_size=2", f"trainer.max_steps={STEPS}"]
BACKGROUND = [*TRAIN, "trainer.background_checkpoints=true"]
SAMPLE = ["ckpt=run.ckpt", "accelerator=cpu", "precision=fp32", "sampler.steps=2", "prompts=prompts.txt", "total=24",
          "batch_size=2", "out=out"]  # fmt: skip
EXPORT = ["ckpt=run.ckpt", "out=out"]
CONVERT = ["source=sit", "file=theirs.safetensors", "out=out", "num_heads=2", "autoencoder=sd"]
FROM = [*TRAIN, "init=weights", "init.ckpt=base", "init.weights=raw"]
ADAPTERS = [*FROM, "adapter=lora", "adapter.r=2", "adapter.dropout=0.2"]
POINTS = ["optimizer.lr=1e-3,1e-4", "hydra.sweep.dir=sweep"]


def draw_shapes() -> None:
    """The default data, so that training is most of the time."""
    make_run("trainer.max_steps=1")
    shutil.rmtree("run")


def make_base() -> None:
    make_run("trainer.max_steps=2")
    Path("run").rename("base")


def resumed(arguments: list[str]) -> list[str] | None:
    """The arguments that go on with the run, if it has not finished."""
    if Path("run/finished.json").exists():
        return None
    return [*arguments, *(["ckpt=last"] if Path("run/checkpoints/last.ckpt").exists() else [])]


def unless_exported(*arguments: str) -> Callable[[], list[str] | None]:
    """The arguments again, unless the folder is there, which is whole then and is not replaced."""
    return lambda: None if any(Path("out").glob("*.json")) else list(arguments)


def state_of(folder: Path) -> Any:
    saved = read_raw(folder / "checkpoints/last.ckpt")
    del saved["rfdit"]
    rows = [
        {name: value for name, value in row.items() if value} for row in read_metrics(folder / "metrics.csv")
    ]
    return digest(saved), rows


def make_checkpoint() -> None:
    write_checkpoint(Path("run.ckpt"))
    make_text()


def make_evaluation() -> None:
    make_checkpoint()
    write_reference(Path("reference.npz"))


def averaged() -> Any:
    saved = read_checkpoint(Path("out.ckpt"))
    return saved.step, state_digest(saved.weights("ema"))


WORKS = [
    Work(
        "train",
        "train",
        draw_shapes,
        TRAIN,
        lambda: resumed(TRAIN),
        lambda: state_of(Path("run")),
        (),
        weight=3,
    ),
    Work(
        "train first start",
        "train",
        lambda: None,
        TRAIN,
        lambda: resumed(TRAIN),
        lambda: state_of(Path("run")),
        (),
    ),
    Work(
        "train background checkpoints",
        "train",
        draw_shapes,
        BACKGROUND,
        lambda: resumed(BACKGROUND),
        lambda: state_of(Path("run")),
        (),
        weight=2,
    ),
    *[
        Work(name, "train", make_base, how, partial(resumed, how), lambda: state_of(Path("run")), ())
        for name, how in (("train from weights", FROM), ("train adapters", ADAPTERS))
    ],
    Work(
        "train a sweep",
        "train",
        draw_shapes,
        ["-m", *TRAIN[1:], "trainer.max_steps=4", *POINTS],
        result=lambda: [
            state_of(path.parent.parent) for path in sorted(Path("sweep").glob("*/checkpoints/last.ckpt"))
        ],
        whole=(),
        weight=2,
    ),
    Work("sample PNG", "sample", make_checkpoint, SAMPLE),
    Work(
        "sample tar",
        "sample",
        make_checkpoint,
        [*SAMPLE, "output=tar", "output.images_per_shard=4"],
        weight=2,
    ),
    Work(
        "sample npz",
        "sample",
        make_checkpoint,
        [*SAMPLE, "output=npz", "output.images_per_part=4"],
        weight=2,
    ),
    Work(
        "sample an evaluation",
        "sample",
        make_evaluation,
        [
            "ckpt=run.ckpt",
            "accelerator=cpu",
            "precision=fp32",
            "sampler.steps=2",
            "batch_size=4",
            *tiny_eval("reference.npz", samples=40),
        ],
        result=lambda: [record["values"] for record in read_records(Path())][-1],
        whole=("evaluations/*/*.safetensors",),
        weight=2,
    ),
    Work("encode", "encode", make_shards, [*ENCODE, "out=out"], weight=2),
    Work("pack", "pack", make_folder, [*PACK[:-1], "out=out", "samples_per_shard=2"], weight=2),
    Work("index", "index", make_shards, ["data.shards=shards", "out=out"]),
    Work(
        "reference",
        "reference",
        make_folder,
        ["images=images", "resolution=8", *TINY[:-2], "accelerator=cpu", "out=out.npz"],
    ),
    Work(
        "export",
        "export",
        make_checkpoint,
        ["ckpt=run.ckpt", "out=out"],
        unless_exported("ckpt=run.ckpt", "out=out"),
        weight=2,
    ),
    Work(
        "export for diffusers",
        "export",
        make_checkpoint,
        [*EXPORT, "format=diffusers"],
        unless_exported(*EXPORT, "format=diffusers"),
        weight=2,
    ),
    Work(
        "convert",
        "convert",
        make_published,
        CONVERT,
        unless_exported(*CONVERT),
        weight=2,
    ),
    Work(
        "posthoc",
        "posthoc",
        lambda: make_run(*POWER),
        ["ckpt=run", "std=0.08", "out=out.ckpt"],
        result=averaged,
        whole=(),
    ),
    Work("report", "report", make_runs, ["runs=runs", "out=out"], whole=("out/*.csv", "out/*.json")),
]
