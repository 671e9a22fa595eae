"""Pictures from a checkpoint: compose, validate, load, sample, write."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, register, validate
from rfdit.frozen import state_digest, weights_digest
from rfdit.interchange.folder import is_folder
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampling.classes import captions, class_names, read_labels
from rfdit.sampling.evaluate import CheckpointEvaluation
from rfdit.sampling.guide import find_guide
from rfdit.sampling.load import load_pipeline, open_checkpoint, with_scales
from rfdit.sampling.output import Job, Output
from rfdit.sampling.place import Place
from rfdit.sampling.produce import produce
from rfdit.sampling.request import Asked, read_prompts
from rfdit.training.checkpoint import SavedRun
from rfdit.training.local_ranks import LocalRanks
from rfdit.training.run_folder import environment

# What says where and by whom pictures are made, and changes none of them.
ELSEWHERE = {"out", "devices"}


@dataclass(frozen=True)
class _Task:
    """Pictures to make, as `produce` takes them."""

    job: Job
    output: Output
    pipelines: Mapping[float | None, Pipeline]
    conditions: Conditions


def read_asked(saved: SavedRun, config: dict[str, Any]) -> Asked | None:
    """What to make, in words that the model knows; None if there are neither prompts nor labels."""
    prompts, labels = config["prompts"], config["labels"]
    if prompts is not None and labels is not None:
        raise ValueError("prompts and labels are both set; give the one that the model was trained with")
    conditioner = saved.config["conditioner"]
    if "num_classes" in conditioner and (prompts is not None or config["negative"] is not None):
        raise ValueError(f"ckpt={saved.path} was trained on class labels; give labels=[0,1] and no prompts")
    if "num_classes" not in conditioner and labels is not None:
        raise ValueError(f"ckpt={saved.path} was trained on captions; give 'prompts=[...]' and no labels")
    inputs: list[str] | list[int]
    if prompts is not None:
        inputs = shown = read_prompts(prompts)
    elif labels is not None:
        names = class_names(saved.config, config["class_names"])
        inputs = read_labels(labels, num_classes=conditioner["num_classes"], names=names)
        shown = captions(inputs, names)
    else:
        return None
    same = ("seed", "first_key", "count", "total", "seeds", "scales", "matrix", "columns")
    return Asked(inputs=inputs, captions=shown, **{name: config[name] for name in same})


def sample(cfg: DictConfig, command: Sequence[str] = ()) -> Path | None:
    """One call of `sample.py`; returns the folder of the pictures.

    command: starts another process of it, to which `out=FOLDER` is added.
    """
    config = validate(cfg)
    if config["prompts"] is None and config["labels"] is None and not config["eval"]:
        raise ValueError(
            "prompts is not set; give 'prompts=[a red circle, a blue star]', prompts=FILE, labels=[0,1], or eval=..."
        )
    if config["devices"] < 1:
        raise ValueError(f"devices={config['devices']} must be at least 1")
    saved = open_checkpoint(config["ckpt"])
    asked = read_asked(saved, config)
    folder = Path(config["out"] or _default_folder(saved.path, config["ckpt"]))
    tasks: list[_Task] = []
    command = [*command, "out='" + str(folder).replace("'", r"\'") + "'"]
    try:
        with LocalRanks(command=command, count=config["devices"]) as ranks:
            place = Place.here(config["devices"])
            pipeline = load_pipeline(saved, config, place)
            if asked is not None:
                tasks.append(_pictures(config, saved, asked, folder, pipeline))
            evaluation = CheckpointEvaluation.of(config, saved, pipeline) if config["eval"] else None
            if evaluation is not None:
                conditions = pipeline.conditions(evaluation.inputs, negative=config["negative"])
                tasks.append(_Task(evaluation.job, evaluation.output, {None: pipeline}, conditions))
            _make(tasks, ranks, place)
            if evaluation is not None and place.rank == 0:
                print(evaluation.finish(), flush=True)
    except KeyboardInterrupt:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            folders = ", ".join(str(task.job.folder) for task in tasks)
            print(f"stopped; what is finished is in {folders or folder}", flush=True)
        raise SystemExit(130) from None
    return None if asked is None else folder


def _describe(config: dict[str, Any], saved: SavedRun, asked: Asked, folder: Path, pipeline: Pipeline) -> Job:
    """What is to be made, with all that the pictures depend on."""
    use = build(config["use"])
    request = use.request(asked)
    request.check_solver(pipeline.sampler.solver)
    guide = find_guide(pipeline.sampler.guidance)
    if guide is not None and config["negative"] is not None:
        raise ValueError(
            f"negative={config['negative']} has no effect with guidance=autoguidance, which moves away from what "
            "its guide makes of the prompt; use guidance=cfg"
        )
    inputs = json.dumps(list(asked.inputs)).encode()
    settings = {
        "checkpoint": str(saved.path),
        "step": saved.step,
        # As they were trained; sampling in bf16 rounds its copy.
        "weights_sha256": state_digest(saved.weights(config["weights"])),
        **({} if guide is None or guide.network is None else {"guide_sha256": weights_digest(guide.network)}),
        "inputs_sha256": hashlib.sha256(inputs).hexdigest(),
        "image_size": list(pipeline.image_size),
        "arithmetic": f"{pipeline.device.type} {'bf16' if pipeline.bf16 else 'fp32'}",
        "config": {name: value for name, value in config.items() if name not in ELSEWHERE},
    }
    return Job(
        folder=folder,
        request=request,
        use=use,
        settings=settings,
        batch_size=pipeline.batch_size,
    )


def _pictures(
    config: dict[str, Any], saved: SavedRun, asked: Asked, folder: Path, pipeline: Pipeline
) -> _Task:
    """The pictures that were asked for."""
    job = _describe(config, saved, asked, folder, pipeline)
    inputs = [picture.given for picture in job.request.pictures]
    return _Task(
        job,
        build(config["output"]),
        with_scales(pipeline, config["scales"]),
        pipeline.conditions(inputs, negative=config["negative"]),
    )


def _make(tasks: Sequence[_Task], ranks: LocalRanks, place: Place) -> None:
    """Makes the pictures, in all processes together; the first one says where they are."""
    for task in tasks if place.rank == 0 else ():
        task.output.open(task.job)
        with (task.job.folder / "environment.jsonl").open("a") as file:
            file.write(json.dumps(environment()) + "\n")
    ranks.start()
    with place.together():
        for task in tasks:
            written = produce(task.job, task.output, task.pipelines, task.conditions, place)
            if written is not None:
                evaluations = max(each.sampler.evaluations for each in task.pipelines.values())
                told = f"; {evaluations} evaluations of the velocity for each" if evaluations else ""
                print(written + told, flush=True)


def rank_command() -> list[str]:
    """What starts another process of the Hydra job that runs now, with its own settings."""
    job = HydraConfig.get()
    folders = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    return [
        *(sys.executable, "-m", "rfdit.sample", "--config-name", str(job.job.config_name)),
        *(argument for folder in folders for argument in ("--config-dir", folder)),
        *(override for override in job.overrides.task if not override.startswith("out=")),
        "hydra.mode=RUN",
    ]


def _default_folder(checkpoint: Path, ckpt: str) -> Path:
    """A folder by date and time: in the run folder or the exported one, and here for a model of the hub."""
    if not Path(ckpt).expanduser().exists():
        run = Path()
    elif is_folder(checkpoint):
        run = checkpoint
    else:
        run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return run / "samples" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


@hydra.main(config_path=str(CONFIG_DIR), config_name="sample", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with explain_errors("sample", ValueError, OSError):
        sample(cfg, rank_command())


def main() -> None:
    """The entry of `sample.py` and of `python -m rfdit.sample`."""
    register()
    with explain_errors("sample"):
        _main()


if __name__ == "__main__":
    main()
