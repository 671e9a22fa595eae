"""What a run leaves in its folder, read by its next start, by sweeps and by reports."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

from rfdit.checkpoint.saved_run import read_raw
from rfdit.eval.records import EvaluationRecord, append_record, read_evaluations
from rfdit.run.complete import finish_trained, finished_point
from rfdit.run.folder import read_metrics
from rfdit.run.state import mark_failed, read_state
from rfdit.storage.untrusted import read_yaml
from tests.support.commands.processes import SETTINGS
from tests.support.evaluation.small_evaluation import PROTOCOL
from tests.system.drill.kind import Kind, digest, digest_files, run
from tests.system.drill.kinds.models import forge_checkpoint, make_run

TRAIN = ["run_dir=run", *SETTINGS, "data.batch_size=2"]
OPEN = ["config.yaml", "overrides.txt"]
LOGS = ["metrics.csv", "*.jsonl"]
FILES = ["*.yaml", "*.json", "*.jsonl", "*.csv", "*.txt", "samples/*.png"]
REPORTED = [f"runs/*/{pattern}" for pattern in FILES]


def resume() -> Any:
    """All that the last checkpoint holds, and the logged numbers, two steps later."""
    run("train", *TRAIN, "trainer.max_steps=4", "ckpt=last")
    saved = read_raw(Path("run/checkpoints/last.ckpt"))
    rows = read_metrics(Path("run/metrics.csv"))
    return (
        digest({k: v for k, v in saved.items() if k != "rfdit"}),
        rows,
        digest_files("run/checkpoints/*.ckpt").keys(),
    )


def add_evaluations(folder: Path) -> None:
    for step in (1, 2):
        record = EvaluationRecord(
            name="quick",
            step=step,
            weights="ema",
            values={"fid": 3.25 * step},
            protocol=PROTOCOL,
            seconds=1.5,
        )
        append_record(folder, record)


def make_runs() -> None:
    """A finished run, one that failed, and one that goes on."""
    make_run("trainer.max_steps=2")
    add_evaluations(Path("run"))
    for name in ("failed", "unfinished"):
        shutil.copytree("run", f"runs/{name}", ignore=shutil.ignore_patterns("checkpoints", "finished.json"))
    shutil.copytree("run", "runs/finished", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.rmtree("run")
    mark_failed(Path("runs/failed"), "it was told to", ValueError("it was told to"))


def report() -> Any:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run("report", "runs=runs", "out=out")
    if skipped := [line for line in printed.getvalue().splitlines() if line.startswith("skipped: ")]:
        raise ValueError(skipped[0])
    return digest_files("out/report.csv", "out/*.json")


def make_sweep() -> None:
    make_run("trainer.max_steps=2")
    shutil.copytree("run", "sweep/done")
    shutil.copytree("run", "sweep/trained")
    Path("sweep/trained/finished.json").unlink(missing_ok=True)


def read_sweep() -> Any:
    config = read_yaml(Path("config.yaml"))
    done = finished_point(Path("sweep/done"), config | {"run_dir": "sweep/done"})
    trained = finish_trained(Path("sweep/trained"), config | {"run_dir": "sweep/trained"})
    return repr(done), repr(trained), repr(read_state(Path("sweep/done")))


def make_sweep_points() -> None:
    make_sweep()
    shutil.copy("run/config.yaml", "config.yaml")
    shutil.rmtree("run")


KINDS = [
    Kind(
        "run that is resumed",
        lambda: make_run("trainer.max_steps=2"),
        resume,
        [
            "run/checkpoints/last.ckpt",
            "run/metrics.csv",
            "run/run.lock",
            "run/config.yaml",
            "run/*.jsonl",
            "run/*.txt",
        ],
        forge={"*.ckpt": forge_checkpoint},
        weight=1.5,
        logs=LOGS,
        open=OPEN,
    ),
    Kind(
        "runs of a report",
        make_runs,
        report,
        [f"runs/*/{pattern}" for pattern in FILES],
        weight=2,
        logs=LOGS,
        open=OPEN,
    ),
    Kind(
        "points of a sweep",
        make_sweep_points,
        read_sweep,
        ["sweep/*/*.json", "sweep/*/*.yaml", "sweep/*/*.csv", "sweep/*/checkpoints/last.ckpt"],
        logs=LOGS,
        open=OPEN,
    ),
    Kind(
        "evaluations",
        lambda: add_evaluations(Path()),
        lambda: repr(read_evaluations(Path())),
        ["evaluations.jsonl"],
        logs=LOGS,
        open=OPEN,
    ),
]
