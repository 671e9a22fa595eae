"""Runs that start from weights, on two ranks as on one: two processes on gloo, through the real command line."""

import shutil
from pathlib import Path

import pytest

from tests.support.training.spread import FOUR, TWO, assert_close, run
from tests.support.training.states import assert_equal, trained_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_shapes")]
SHARDED = ["strategy=fsdp", "strategy.meta_init=true", *TWO]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `base` whose checkpoint is in shards."""
    folder = tmp_path_factory.mktemp("finetuning")
    run(folder / "base", "strategy=fsdp", *TWO, "schedule.warmup_steps=0", "optimizer.lr=1e-2")
    return folder


def test_a_run_from_weights_is_the_same_under_every_strategy(folder: Path) -> None:
    start = ["init=weights", f"init.ckpt={folder / 'base'}", "freeze=[*,!*.qkv.*]", "trainer.max_steps=6"]
    single = trained_state(run(folder / "single", FOUR, *start))
    assert_close(trained_state(run(folder / "ddp", "strategy=ddp", *TWO, *start)), single)
    sharded = [*SHARDED, *start, "callbacks.checkpoints.every_n_steps=3"]
    whole = trained_state(run(folder / "fsdp", *sharded))
    assert_close(whole, single)
    run(folder / "part", *sharded, "trainer.max_steps=3", "schedule.total_steps=6")
    shutil.move(folder / "base", folder / "moved")
    run(folder / "part", *sharded, "ckpt=last")  # which does not read the weights again
    shutil.move(folder / "moved", folder / "base")
    assert_equal(trained_state(folder / "part"), whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_are_the_same_under_every_strategy(folder: Path, precision: str) -> None:
    start = [
        "init=weights",
        f"init.ckpt={folder / 'base'}",
        "adapter=lora",
        "adapter.r=2",
        "optimizer.lr=1e-2",
    ]
    start += ["trainer.max_steps=6", "schedule.warmup_steps=0", f"trainer.precision={precision}"]
    name = f"lora_{precision}"
    single = trained_state(run(folder / name, FOUR, *start))
    sharded = [*SHARDED, *start, "callbacks.checkpoints.every_n_steps=3", "model.recompute=full"]
    whole = trained_state(run(folder / f"{name}_fsdp", *sharded))
    assert whole.keys() == single.keys()
    assert all(".lora_" in key for key in whole if not key.startswith("optimizer_states"))
    for key in single if precision == "bf16" else ():
        assert (whole[key] - single[key]).norm() <= 0.2 * single[key].norm(), key
    if precision == "fp32":
        assert_close(whole, single)
        assert_close(trained_state(run(folder / f"{name}_ddp", "strategy=ddp", *TWO, *start)), single)
    run(folder / f"{name}_part", *sharded, "trainer.max_steps=3", "schedule.total_steps=6")
    run(folder / f"{name}_part", *sharded, "ckpt=last")
    assert_equal(trained_state(folder / f"{name}_part"), whole)
