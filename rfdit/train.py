"""Training from the command line: compose, validate, build, run."""

import logging
import os
import shlex
import sys
import warnings
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from rfdit.callbacks import Evaluate, GracefulStop, Trace
from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, build_network, register, validate
from rfdit.data.latent_manifest import weights_of
from rfdit.data.latents import LatentDecoder
from rfdit.model.cost import count_parameters
from rfdit.sweep import finish_trained, is_done, run_point, summed_up
from rfdit.training.checkpoint import (
    changed_settings,
    check_resumable,
    find_checkpoint,
    newest_run,
    read_checkpoint,
)
from rfdit.training.device import pick_device
from rfdit.training.fp8 import check_fp8
from rfdit.training.fully_sharded import starts_empty
from rfdit.training.local_ranks import LocalRanks, check_ranks
from rfdit.training.meeting import meet
from rfdit.training.memory import keep_freed_memory
from rfdit.training.module import FlowModule
from rfdit.training.run_folder import describe_run
from rfdit.training.run_state import forget_end, mark_finished

MAX_SEED = 2**32 - 1  # NumPy's


@dataclass(frozen=True)
class Training:
    """The three things that Lightning puts together."""

    module: FlowModule
    data: L.LightningDataModule
    trainer: L.Trainer


def build_training(config: dict[str, Any]) -> Training:
    """Everything that a validated training configuration describes."""
    if not 0 <= config["seed"] <= MAX_SEED:
        raise ValueError(f"seed={config['seed']} must be from 0 to {MAX_SEED}")
    L.seed_everything(config["seed"], verbose=False)
    with isolate_rng():  # feature networks draw weights before they load theirs
        callbacks = [build(node) for node in config["callbacks"].values() if node is not None]
    trainer = build(
        config["trainer"],
        callbacks=callbacks,
        loggers=[build(node) for node in config["logger"].values() if node is not None],
    )
    network = build_network(config, empty_backbone=starts_empty(trainer))
    autoencoder = build(config["autoencoder"])
    module = FlowModule(
        network=network,
        autoencoder=autoencoder,
        objective=build(config["objective"]),
        optimizer=build(config["optimizer"]),
        seed=config["seed"],
        compile_blocks=config["compile"],
        fp8=config["fp8"],
        record={"config": config, "latents": autoencoder.contract.as_dict()},
    )
    for callback in callbacks:
        if isinstance(callback, Evaluate):
            callback.check(module)
    data = build(config["data"])
    if isinstance(decoder := getattr(data, "decoder", None), LatentDecoder):
        # Only the run itself knows the weights that it has loaded. A conditioner of labels has no encoder.
        encoder = getattr(network.conditioner, "encoder", None)
        weights = weights_of("autoencoder", config["autoencoder"], autoencoder)
        data.decoder = replace(
            decoder, weights=weights | weights_of("text_encoder", config["text_encoder"], encoder)
        )
    return Training(module=module, data=data, trainer=trainer)


def find_resume(ckpt: str | None, run_dir: Path) -> Path | None:
    """The checkpoint to go on from; raises ValueError where two runs would mix in one folder."""
    own = run_dir / "checkpoints" / "last.ckpt"
    if ckpt is None:
        if own.exists():
            raise ValueError(
                f"run_dir={run_dir} holds a run already; give ckpt=last to resume it, or another run_dir"
            )
        return None
    if ckpt == "last":
        if own.exists():
            return own
        newest = newest_run(Path("outputs"))
        hint = f"; the newest run here is run_dir={newest}" if newest else ""
        raise ValueError(f"ckpt=last means run_dir={run_dir}, which has no checkpoints/last.ckpt{hint}")
    path = find_checkpoint(ckpt)
    if own.exists() and own.resolve() != path.resolve():
        raise ValueError(
            f"ckpt={ckpt} and run_dir={run_dir} are two conflicting checkpoints: the folder has its own "
            "checkpoints/last.ckpt; give ckpt=last to resume that, or another run_dir"
        )
    return path


def train(cfg: DictConfig, *, run_dir: Path, overrides: list[str], in_sweep: bool = False) -> float | None:
    """One run; returns its objective_metric, which a sweeper can minimise.

    in_sweep: the folder may hold this run, finished, which is skipped, or begun, which is resumed.
    """
    cfg.run_dir = str(run_dir)
    if in_sweep and (run_dir / "checkpoints" / "last.ckpt").exists():
        cfg.ckpt = "last"
    config = validate(cfg)
    metric = config["objective_metric"]
    if in_sweep and (done := is_done(run_dir, config) or finish_trained(run_dir, config)):
        print(f"skipped: {run_dir} is finished, at step {done.step}", flush=True)
        return (done.metrics or {}).get(metric)
    resume = find_resume(config["ckpt"], run_dir)
    device = pick_device(config["trainer"]["accelerator"])
    if device.type == "cpu":
        keep_freed_memory()
    if config["fp8"]:
        check_fp8(device)
    devices, nodes = config["trainer"]["devices"], config["trainer"]["num_nodes"]
    check_ranks(devices, nodes)
    command = rank_command(run_dir, config["ckpt"])
    with LocalRanks(command=command, count=devices) as ranks:
        training = build_training(config)
        start = 0 if resume is None else _check_resume(resume, training, config)
        _check_trace(training.trainer, start)
        at = "" if resume is None else f" from step {start}"
        if training.trainer.is_global_zero:
            forget_end(run_dir)
            describe_run(run_dir, config_yaml=OmegaConf.to_yaml(cfg, resolve=True), overrides=overrides)
            parameters = count_parameters(training.module.network)
            print(
                f"training {parameters:,} parameters in {run_dir}{at} ({training.trainer.precision})",
                flush=True,
            )
        ranks.start()
        if in_sweep and ranks.placed:
            minutes = config["strategy"].get("timeout_minutes", 30)
            meet(training.trainer, point=HydraConfig.get().job.num, timeout=timedelta(minutes=minutes))
        training.trainer.fit(training.module, datamodule=training.data, ckpt_path=resume, weights_only=True)
        metrics = {name: float(value) for name, value in training.trainer.callback_metrics.items()}
        _report(training, run_dir, overrides, metrics, in_sweep)
        return metrics.get(metric)


def _check_resume(resume: Path, training: Training, config: dict[str, Any]) -> int:
    """The checkpoint's step; says what is set otherwise than there, raises ValueError if the run cannot go on."""
    saved = read_checkpoint(resume, weights=False)
    check_resumable(saved, config, training.module.autoencoder.contract)
    if training.trainer.is_global_zero and (changed := changed_settings(saved.config, config)):
        print(f"resuming with other settings than the checkpoint's: {'; '.join(changed)}", flush=True)
    if saved.step >= training.trainer.max_steps > 0:
        raise ValueError(
            f"ckpt={resume} is at step {saved.step} already; give trainer.max_steps more than that"
        )
    return saved.step


def _check_trace(trainer: L.Trainer, start: int) -> None:
    """Raises ValueError for a profile of steps that a new run does not come to.

    One that is resumed has its profile already, or may be near its end.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Trace) and trainer.max_steps > 0 and start == 0:
            callback.check(trainer.max_steps)


def rank_command(run_dir: Path, ckpt: str | None) -> list[str]:
    """What starts another rank of the Hydra job that runs now: its own settings, in its own folder."""
    job = HydraConfig.get()
    sources = job.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    main = next(source for source in sources if source.provider == "main")  # conf/, or --config-path
    own = main.path if main.schema == "file" else f"{main.schema}://{main.path}"
    # As they were typed: what refers to other settings must do so there too.
    typed: Any = OmegaConf.to_container(job.overrides, resolve=False)
    search = [override for override in typed["hydra"] if override.startswith("hydra.searchpath=")]
    folder = str(run_dir.absolute()).replace("'", r"\'")  # a sweep's folders have = and , in their names
    resume = ["ckpt=last"] if ckpt == "last" else []  # which a sweep gives where nobody typed it
    return [
        *(
            sys.executable,
            "-m",
            "rfdit.train",
            "--config-path",
            own,
            "--config-name",
            str(job.job.config_name),
        ),
        *(argument for folder in folders for argument in ("--config-dir", folder)),
        *typed["task"],
        *resume,
        *search,
        *("hydra.mode=RUN", f"hydra.run.dir='{folder}'"),
    ]


def _report(
    training: Training, run_dir: Path, overrides: list[str], metrics: dict[str, float], in_sweep: bool
) -> None:
    """How it ended; raises SystemExit with the shell's code for a run that a signal stopped."""
    step = training.trainer.global_step
    stops = [c for c in training.trainer.callbacks if isinstance(c, GracefulStop)]  # type: ignore[attr-defined]
    signal = stops[0].stopped_by if stops else None
    if signal is None:
        if training.trainer.is_global_zero:
            mark_finished(run_dir, step=step, metrics=metrics)
            print(f"done: {step} steps; checkpoints, metrics and pictures are in {run_dir}", flush=True)
        return
    if training.trainer.is_global_zero:
        kept = [override for override in overrides if not override.startswith(("run_dir=", "ckpt="))]
        again = shlex.join(["python", "train.py", f"run_dir={run_dir}", "ckpt=last", *kept])
        resume = "" if in_sweep else f"; resume with: {again}"
        print(f"stopped by {signal.name} at step {step}{resume}", flush=True)
    raise SystemExit(128 + signal)


def _quiet() -> None:
    """Silences what is said at every start and helps nobody."""
    for name in ("lightning.pytorch", "lightning.fabric", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@hydra.main(config_path=str(CONFIG_DIR), config_name="train", version_base="1.3")
def _main(cfg: DictConfig) -> float | None:
    hydra_cfg = HydraConfig.get()
    _quiet()
    torch.set_float32_matmul_precision("high")
    typed: Any = OmegaConf.to_container(hydra_cfg.overrides, resolve=False)
    run_dir, overrides = Path(hydra_cfg.runtime.output_dir), typed["task"]
    run_dir = _relative(run_dir)
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return run_point(run_dir, lambda: train(cfg, run_dir=run_dir, overrides=overrides, in_sweep=True))
    with explain_errors("train", ValueError, OSError):
        return train(cfg, run_dir=run_dir, overrides=overrides)


def _relative(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> None:
    """The entry of `train.py` and of `python -m rfdit.train`."""
    register()
    with explain_errors("train"), summed_up():
        _main()


if __name__ == "__main__":
    main()
