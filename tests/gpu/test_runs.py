"""train.py and sample.py on a GPU: resumed, in the background, sharded, and what they write."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdit.loading import load
from tests.support.commands.command_line import CommandLine, images, metrics
from tests.support.training.states import assert_equal, resumed_state

SMALL = ["model.width=64", "model.num_heads=1", "data.shards.samples=64", "data.shards.shards=1"]
PROMPTS = "prompts=[a small red circle,a large blue star,a small green square]"


@pytest.fixture
def small(accelerator: str) -> list[str]:
    """Settings of a run of moments on the device."""
    return [f"trainer.accelerator={accelerator}", *SMALL]


@pytest.fixture
def alone() -> Iterator[None]:
    """Ends the process group that a strategy leaves behind."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def losses(run: str) -> list[float]:
    return [float(row["train/loss"]) for row in metrics(Path(run))]


@pytest.mark.parametrize(("model", "precision"), [("mmdit", "auto"), ("mmdit", "fp32"), ("dit", "auto")])
def test_resume_is_bit_equal_to_no_interruption(
    cli: CommandLine, deterministic: None, small: list[str], model: str, precision: str
) -> None:
    settings = [
        *small,
        f"model={model}",
        f"trainer.precision={precision}",
        "schedule=constant",
        "spikes=median",
    ]
    cli.train("run_dir=whole", "trainer.max_steps=8", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=3", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=8", "ckpt=last", *settings)
    assert losses("whole") == losses("parts")
    assert_equal(resumed_state(Path("whole")), resumed_state(Path("parts")))


def test_resume_without_deterministic_kernels(cli: CommandLine, small: list[str]) -> None:
    """Sums in another order may differ after a few steps, but only in the last bits."""
    settings = [*small, "trainer.precision=fp32", "schedule=constant"]
    cli.train("run_dir=whole", "trainer.max_steps=8", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=3", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=8", "ckpt=last", *settings)
    assert losses("parts") == pytest.approx(losses("whole"), rel=1e-4)


def test_losses_are_the_cpus(cli: CommandLine, small: list[str]) -> None:
    settings = [*small, "trainer.precision=fp32", "schedule=constant", "trainer.max_steps=6"]
    cli.train("run_dir=here", *settings)
    cli.train("run_dir=cpu", *settings, "trainer.accelerator=cpu")
    # train.py lets GPUs multiply float32 numbers as TF32.
    assert losses("here") == pytest.approx(losses("cpu"), rel=5e-3)


def test_checkpoints_in_the_background_are_the_same(
    cli: CommandLine, deterministic: None, small: list[str]
) -> None:
    settings = [*small, "trainer.max_steps=5", "callbacks.checkpoints.every_n_steps=1"]
    for run, background in (("plain", "false"), ("behind", "true")):
        cli.train(f"run_dir={run}", f"trainer.background_checkpoints={background}", *settings)
    assert_equal(resumed_state(Path("plain")), resumed_state(Path("behind")))
    cli.train("run_dir=behind", "ckpt=last", *small, "trainer.max_steps=7")
    assert len(losses("behind")) == 7


def test_steps_between_logs_do_not_wait(cli: CommandLine, small: list[str]) -> None:
    """Lightning's loop and the default callbacks surround the steps, and there are enough tokens to sort them."""
    watch = ["+callbacks.watch._target_=tests.support.gpu.watch.NoWaiting", "+callbacks.watch.last=6"]
    cli.train(
        "run_dir=run",
        *small,
        "trainer.max_steps=8",
        "trainer.log_every_n_steps=50",
        "data.batch_size=256",
        *watch,
    )


def test_throughput_and_grid(cli: CommandLine, small: list[str], accelerator: str) -> None:
    speed = "callbacks.throughput={_target_: rfdit.callbacks.Throughput, every_n_steps: 2}"
    grid = (
        "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, "
        "every_n_steps: 4, count: 3}"
    )
    validation = ["trainer.val_every_n_steps=2", "trainer.limit_val_batches=1", "data.val_shards.samples=16"]
    cli.train("run_dir=run", *small, "trainer.max_steps=4", speed, grid, "sampler.steps=2", *validation)
    last = metrics(Path("run"))[-1]
    assert 0 < float(last["speed/mfu"]) < 1
    assert float(last["speed/peak_memory_gb"]) > 0
    assert float(last["val/loss"]) > 0
    assert Path("run/samples/step_00000004.png").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_rank_of_a_strategy_is_one_device(
    cli: CommandLine, small: list[str], alone: None, strategy: str
) -> None:
    cli.train("run_dir=single", *small, "trainer.max_steps=4")
    cli.train("run_dir=one", *small, f"strategy={strategy}", "trainer.max_steps=2")
    cli.train("run_dir=one", *small, f"strategy={strategy}", "trainer.max_steps=4", "ckpt=last")
    assert losses("one") == pytest.approx(losses("single"), rel=2e-3)


def test_fp8_runs(cli: CommandLine, small: list[str], fp8: None) -> None:
    cli.train("run_dir=eight", *small, "fp8=true", "trainer.max_steps=4", "data.batch_size=16")
    cli.train("run_dir=bf16", *small, "trainer.precision=bf16", "trainer.max_steps=4", "data.batch_size=16")
    assert losses("eight") == pytest.approx(losses("bf16"), rel=0.05)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_images(cli: CommandLine, small: list[str], accelerator: str, precision: str) -> None:
    """Images are finite, the same in a second run, and in float32 within two of 255 of the CPU's."""
    cli.train("run_dir=run", *small, "trainer.max_steps=6", "schedule=constant", "schedule.warmup_steps=0")
    request = ["ckpt=run", PROMPTS, f"precision={precision}", "sampler.steps=4"]
    for out in ("first", "again"):
        cli.sample(*request, f"accelerator={accelerator}", f"out={out}")
    first = images(Path("first"))
    assert first.shape == (3, 32, 32, 3)
    assert np.array_equal(first, images(Path("again")))
    if precision == "fp32":
        cli.sample(*request, "accelerator=cpu", "out=cpu")
        assert abs(first.astype(int) - images(Path("cpu"))).max() <= 2


def test_loaded_pipelines_give_finite_latents(cli: CommandLine, small: list[str], accelerator: str) -> None:
    cli.train("run_dir=run", *small)
    pipeline, prompts = load("run", accelerator=accelerator).pipeline, ["a small red circle", "a blue star"]
    latents = pipeline.sample(pipeline.generator(0, range(2)), prompts, pipeline.conditions(prompts))
    assert latents.device.type == pipeline.device.type
    assert latents.shape == (2, 3, 32, 32)
    assert bool(latents.isfinite().all())
    assert bool((pipeline.decode(latents) == pipeline(prompts, seed=0)).all())
