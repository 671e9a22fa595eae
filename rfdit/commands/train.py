"""Training from the command line: compose, validate, build, run. See conf/train.yaml."""

import copy
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGUSR1
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from rfdit.callbacks.budget import steps_within
from rfdit.callbacks.capabilities import ChecksRun, callbacks_of, stopping_signal, time_is_up
from rfdit.checkpoint.resume import LAST, changed_settings, find_resume, read_resumable
from rfdit.checkpoint.saved_run import checkpoint_header, read_checkpoint
from rfdit.config.build import build, build_network, validate
from rfdit.config.command import command, rank_command
from rfdit.config.overrides import setting, typed_program
from rfdit.counted import counted
from rfdit.data.class_names import trained_class_names
from rfdit.data.latents.manifest import TEACHER, weights_of
from rfdit.data.sample import CacheDecoder
from rfdit.device import keep_freed_memory, pick_device
from rfdit.finetune.adapt import check_resumes, choose_trained, find_base
from rfdit.finetune.start import NewRun
from rfdit.generate.teacher import CheckpointTeacher
from rfdit.model.acceleration import check_fp8
from rfdit.network import layers_of
from rfdit.objective.needs import HasTeacher
from rfdit.processes.launch import LocalRanks, check_ranks, is_launched
from rfdit.processes.quiet import quiet_others
from rfdit.processes.rank import is_rank_zero
from rfdit.processes.slurm import requeue, slurm_job
from rfdit.run.complete import complete_run, finish_trained, finished_point
from rfdit.run.folder import describe_run, discard_start, only_run
from rfdit.run.log import logged
from rfdit.run.state import TrainedRun, forget_end, mark_finished
from rfdit.run.sweep import run_point, summary_of_sweep
from rfdit.training.checkpoint_io import restoring
from rfdit.training.module import FlowModule
from rfdit.training.rendezvous import join_process_group
from rfdit.training.strategy import starts_empty


@dataclass(frozen=True)
class Training:
    """The three parts of a run that Lightning puts together, and what is said of its initial weights."""

    module: FlowModule
    data: L.LightningDataModule
    trainer: L.Trainer
    started_from: str | None = None


def build_training(config: dict[str, Any], *, resume: Path | None = None) -> Training:
    """Everything that a validated training configuration describes.

    resume: the run's own checkpoint, from which it takes its weights, and not from its `init`. Adapters take
        their base from there all the same.
    """
    L.seed_everything(config["seed"], verbose=False)
    with isolate_rng():  # feature networks draw weights before they load theirs
        callbacks = [build(node) for node in config["callbacks"].values() if node is not None]
    trainer = build(
        config["trainer"],
        callbacks=callbacks,
        loggers=[build(node) for node in config["logger"].values() if node is not None],
    )
    with isolate_rng():  # the network is the one that a run without it draws
        auxiliary = build(config["auxiliary"]) if config["auxiliary"] else None
        objective = build(config["objective"])
    network = build_network(
        config,
        empty_backbone=starts_empty(trainer),
        auxiliary=auxiliary,
        objective=layers_of(objective),
    )
    autoencoder, class_names = build(config["autoencoder"]), trained_class_names(config)
    if isinstance(objective, HasTeacher):
        if isinstance(objective.teacher, CheckpointTeacher):
            with isolate_rng():
                objective.teacher.load(autoencoder.contract, network.conditioner.num_classes, class_names)
    elif config["teacher"]:
        warnings.warn(
            "teacher has no effect: this objective does not learn from another network", stacklevel=2
        )
    adapter = build(config["adapter"])
    started, base, resumed, empty = None, None, None, starts_empty(trainer)
    if resume is not None:
        resumed = read_checkpoint(resume, weights=False).base
        check_resumes(resume, resumed, adapter)
    if (resume is None or adapter is not None) and not empty:  # an empty rank gets its weights from rank 0
        started = build(config["init"])(network, NewRun(config, autoencoder.contract, class_names))
    if adapter is not None and not empty:
        base = find_base(started, resumed=resumed)
    choose_trained(network, adapter, config)
    module = FlowModule(
        network=network,
        autoencoder=autoencoder,
        objective=objective,
        routing=build(config["routing"]) if config["routing"] else None,
        optimizer=build(config["optimizer"]),
        seed=config["seed"],
        compile_blocks=config["compile"],
        fp8=config["fp8"],
        record=checkpoint_header(config, autoencoder.contract.as_dict(), class_names, base),
        trained_only=adapter is not None,
    )
    data = build(config["data"])
    if isinstance(decoder := getattr(data, "decoder", None), CacheDecoder):
        # Only the run itself knows the weights that it has loaded.
        data.decoder = decoder.expecting(
            weights_of("autoencoder", config["autoencoder"], autoencoder)
            | weights_of("text_encoder", config["text_encoder"], network.conditioner.encoder)
            | weights_of(
                TEACHER, (config["auxiliary"] or {}).get("teacher"), getattr(auxiliary, "teacher", None)
            )
        )
    return Training(
        module=module, data=data, trainer=trainer, started_from=None if started is None else started.text
    )


def train(cfg: DictConfig, *, run_dir: Path, overrides: list[str], in_sweep: bool = False) -> float | None:
    """One run; returns its objective_metric, which a sweeper can minimise.

    in_sweep: a run in the folder is skipped if it is finished and resumed if it is not.
    """
    cfg.run_dir = str(run_dir)
    if in_sweep and (run_dir / LAST).exists():
        cfg.ckpt = "last"
    config = validate(cfg)
    resume = find_resume(config["ckpt"], run_dir)
    _prepare_device(config)
    if config["trainer"]["budget"] is not None:
        cfg.trainer.max_steps = steps_within(config, build_training, resume)
        cfg.trainer.budget = None
        config = validate(cfg)
    metric = config["objective_metric"]
    if in_sweep and (done := finished_point(run_dir, config) or finish_trained(run_dir, config)):
        print(f"skipped: {run_dir} is finished, at step {done.step}", flush=True)
        return (done.metrics or {}).get(metric)
    if config["ckpt"] == "last" and (done := finish_trained(run_dir, config)):
        return (done.metrics or {}).get(metric)
    if config["ckpt"] == "auto" and (done := complete_run(run_dir, config)):
        return (done.metrics or {}).get(metric)
    check_ranks(config["trainer"]["devices"], config["trainer"]["num_nodes"])
    # Other ranks get what a sweep decides: the folder of this point, and that it is resumed.
    settings = [setting("hydra.run.dir", run_dir.absolute())]
    settings += ["ckpt=last"] if config["ckpt"] == "last" else []
    other_rank = rank_command("train", *settings) if HydraConfig.initialized() else []
    with LocalRanks(command=other_rank, count=config["trainer"]["devices"]) as ranks:
        training = build_training(config, resume=resume)
        first_step = 0 if resume is None else _check_resume(resume, training, config)
        for callback in callbacks_of(training.trainer, ChecksRun):
            callback.check(training.trainer, training.module, first_step)
        if training.trainer.is_global_zero:
            forget_end(run_dir)
            describe_run(run_dir, config_yaml=OmegaConf.to_yaml(cfg, resolve=True), overrides=overrides)
            if training.started_from is not None:
                print(training.started_from, flush=True)
        ranks.start()
        if in_sweep and ranks.launched:
            join_process_group(training.trainer, point=HydraConfig.get().job.num)
        with restoring(training.trainer, resume):
            training.trainer.fit(
                training.module, datamodule=training.data, ckpt_path=resume, weights_only=True
            )
        metrics = {name: float(value) for name, value in training.trainer.callback_metrics.items()}
        _finish(training.trainer, run_dir, metrics, resume_with=None if in_sweep else overrides)
        return metrics.get(metric)


def _prepare_device(config: dict[str, Any]) -> None:
    """Settings of the process for the device; raises ValueError for one that lacks FP8."""
    device = pick_device(config["trainer"]["accelerator"])
    if device.type == "cpu":
        keep_freed_memory()
    if config["fp8"]:
        check_fp8(device)


def _check_resume(resume: Path, training: Training, config: dict[str, Any]) -> int:
    """The checkpoint's step; prints the settings that have changed, raises ValueError if the run cannot go on."""
    module = training.module
    saved = read_resumable(resume, config, module.autoencoder.contract, module.network.state_dict())
    if training.trainer.is_global_zero and (changed := changed_settings(saved.config, config)):
        print(f"resuming with other settings than the checkpoint's: {'; '.join(changed)}", flush=True)
    return saved.step


def _finish(
    trainer: L.Trainer, run_dir: Path, metrics: dict[str, float], *, resume_with: list[str] | None
) -> None:
    """Record and print how the run ended.

    resume_with: the overrides of the command that resumes the run; None where a sweep does.
    Raises SystemExit with the shell's code for a run that a signal stopped.
    """
    step, signal = trainer.global_step, stopping_signal(trainer)
    cut = signal is None and time_is_up(trainer) and step != trainer.max_steps
    if trainer.is_global_zero and (cut or signal):
        of_steps = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        hint = ""
        if resume_with is not None:
            others = [override for override in resume_with if not override.startswith(("run_dir=", "ckpt="))]
            command = [*typed_program(), setting("run_dir", run_dir), "ckpt=last", *others]
            hint = f"; resume with: {shlex.join(command)}"
            if signal == SIGUSR1 and (job := slurm_job()) and "ckpt=auto" in resume_with:
                failure = requeue(job)
                hint = f"; job {job} is in the queue again" if failure is None else f" ({failure}){hint}"
        print(
            f"stopped by {signal.name if signal else 'max_time'} at step {step}{of_steps}{hint}", flush=True
        )
    elif trainer.is_global_zero:
        mark_finished(run_dir, step=step, metrics=metrics)
        print(f"done: {counted(step, 'step')}; checkpoints, metrics and images are in {run_dir}", flush=True)
    if signal:
        raise SystemExit(128 + signal)


@command("train")
def _main(cfg: DictConfig) -> float | None:
    torch.set_float32_matmul_precision("high")
    job = HydraConfig.get()
    typed: Any = OmegaConf.to_container(job.overrides, resolve=False)
    overrides, run_dir = typed["task"], Path(job.runtime.output_dir)
    unresolved: Any = OmegaConf.to_container(cfg, resolve=False)
    dated = "${now:" in unresolved["run_dir"]
    if dated and cfg.ckpt == "auto":
        raise ValueError(
            "ckpt=auto looks for a run in run_dir, which is a new folder at every start; give run_dir=..."
        )
    if run_dir.is_relative_to(Path.cwd()):
        run_dir = run_dir.relative_to(Path.cwd())  # as one would type it in this folder
    with only_run(run_dir), logged(run_dir):
        if job.mode == RunMode.MULTIRUN:
            return run_point(
                run_dir,
                lambda: train(cfg, run_dir=run_dir, overrides=overrides, in_sweep=True),
                sweeper_counts="max_failure_rate" in job.sweeper,
            )
        try:
            return train(cfg, run_dir=run_dir, overrides=overrides)
        except BaseException:
            if is_rank_zero():
                discard_start(run_dir, dated=dated)
            raise


def train_composed(config: DictConfig) -> TrainedRun:
    """Train what `rfdit.compose("train", ...)` describes, in this process: `rfdit.train`.

    The run is the same, to the last bit, as that of `rfdit train` with the same settings, and leaves the same
    folder, which `ckpt=RUN_DIR` of the command line and `rfdit.load` read.

    Returns the folder, the last step and the last value of each metric. Ctrl-C writes a checkpoint, and raises
    KeyboardInterrupt. Raises ValueError, naming the setting, for a configuration that cannot be trained, and for
    several devices, which need a process each.
    """
    devices = config.trainer.devices * config.trainer.num_nodes
    if devices > 1 and not is_launched():
        raise ValueError(
            f"trainer.devices={config.trainer.devices}: rfdit.train trains on one device; start several from a shell "
            "with rfdit train"
        )
    quiet_others()
    torch.set_float32_matmul_precision("high")
    config, run_dir = copy.deepcopy(config), Path(config.run_dir).expanduser()
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with only_run(run_dir), logged(run_dir):
            train(config, run_dir=run_dir, overrides=[])
    except SystemExit as stopped:
        if stopped.code == 128 + SIGINT:
            raise KeyboardInterrupt from None
        raise
    return TrainedRun.of(run_dir)


def main() -> None:
    """The program `rfdit train`, which is also train.py."""
    with summary_of_sweep():
        _main()
