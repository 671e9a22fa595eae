"""Images from a checkpoint: compose, validate, load, sample, write. See conf/sample.yaml."""

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import torch
from omegaconf import DictConfig

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build, validate
from rfdit.config.command import command, rank_command
from rfdit.config.overrides import setting
from rfdit.counted import counted
from rfdit.generate.evaluate import CheckpointEvaluation
from rfdit.generate.load import PipelineSettings, load_pipeline
from rfdit.generate.produce import Task, produce, sample_task
from rfdit.generate.request import read_request
from rfdit.interchange.adapted import with_adapters
from rfdit.interchange.source import open_adapters, open_model
from rfdit.processes.launch import LocalRanks
from rfdit.processes.rank import Process, is_rank_zero
from rfdit.run.folder import record_start
from rfdit.storage.folders import make_folder
from rfdit.storage.locks import only_process

# Settings that say where images are generated and by how many processes; they do not change the images.
ELSEWHERE = {"out", "devices"}


def sample(cfg: DictConfig, command: Sequence[str]) -> None:
    """Samples the images of a configuration; command: starts another rank, given `out=FOLDER` as well."""
    config = validate(cfg)
    if config["prompts"] is None and config["labels"] is None and not config["eval"]:
        raise ValueError(
            "prompts is not set; give 'prompts=[a red circle, a blue star]', prompts=FILE, labels=[0,1], or eval=..."
        )
    packages = config["packages"]
    saved = open_model(config["ckpt"], step=config["step"], base=config["base"], packages=packages)
    if config["adapters"]:
        saved = with_adapters(saved, config["weights"], config["adapters"], open_adapters, packages=packages)
    request = read_request(saved, config)
    weights, negative = config["weights"], config["negative"]
    folder = Path(config["out"] or _default_folder(saved, config["ckpt"]))
    tasks: list[Task] = []
    command = [*command, setting("out", folder)]
    try:
        with ExitStack() as locks, LocalRanks(command=command, count=config["devices"]) as ranks:
            process = Process.current()
            process.check_devices(config["devices"])
            pipeline = load_pipeline(saved, PipelineSettings.from_config(config), process)
            if request is not None:
                task = sample_task(
                    saved,
                    pipeline,
                    request,
                    use=build(config["use"]),
                    output=build(config["output"]),
                    folder=folder,
                    weights=weights,
                    negative=negative,
                    config={name: value for name, value in config.items() if name not in ELSEWHERE},
                    command=f"cd {shlex.quote(os.getcwd())} && {shlex.join(command)}",
                )
                tasks.append(task)
            evaluation = None
            if config["eval"]:
                evaluation = CheckpointEvaluation.of(
                    build(config["eval"]),
                    saved,
                    pipeline,
                    weights=weights,
                    seed=config["seed"],
                    negative=negative,
                )
                tasks.append(evaluation.task)
            for job in [task.job for task in tasks] if process.rank == 0 else []:
                make_folder(job.folder, setting=job.setting)
                locks.enter_context(only_process(job.folder / "sample.lock", setting=job.setting))
            _run(tasks, ranks, process)
            if evaluation is not None and process.rank == 0:
                print(evaluation.finish(), flush=True)
    except KeyboardInterrupt:
        if is_rank_zero():
            folders = ", ".join(str(task.job.folder) for task in tasks)
            print(f"stopped; the finished images are in {folders or folder}", flush=True)
        raise SystemExit(130) from None


def _run(tasks: Sequence[Task], ranks: LocalRanks, process: Process) -> None:
    """Generates the images, on all ranks together; rank 0 prints where they are."""
    for task in tasks if process.rank == 0 else ():
        task.output.open(task.job)
        record_start(task.job.folder)
    ranks.start()
    with process.group():
        for task in tasks:
            sentence = produce(task, process)
            if sentence is not None:
                n = task.evaluations
                print(
                    sentence + (f"; {counted(n, 'evaluation')} of the velocity for each" if n else ""),
                    flush=True,
                )


def _default_folder(saved: SavedRun, ckpt: str) -> Path:
    """A folder by date and time: in the run folder or the exported one, and here for a model of the hub."""
    run = saved.run_folder if Path(ckpt).expanduser().exists() else Path()
    return run / "samples" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


@command("sample")
def main(cfg: DictConfig) -> None:
    """The program `rfdit sample`."""
    torch.set_float32_matmul_precision("high")
    sample(cfg, rank_command("sample", without=["out"]))
