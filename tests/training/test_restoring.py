"""A run resumes from the state that a run wrote, or ends in a sentence that names the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.commands.command_line import CommandLine
from tests.support.training.runs import Trained

Damage = Callable[[dict[str, Any]], object]


def loop(raw: dict[str, Any]) -> dict[str, Any]:
    progress: dict[str, Any] = raw["loops"]["fit_loop"]
    return progress


def moments(raw: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = raw["optimizer_states"][0]["state"][0]
    return state


def more_steps(raw: dict[str, Any]) -> None:
    loop(raw)["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"].update(
        completed=9
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda raw: raw.update(loops={}),
            "has another structure than the state of this run (KeyError: 'fit_loop')",
        ),
        (lambda raw: raw.update(loops="junk"), "is damaged: its loops are not what training wrote"),
        (
            lambda raw: loop(raw).update({"epoch_loop.batch_progress": 3}),
            "has another structure than the state",
        ),
        (more_steps, "(ValueError: its loops have done 9 steps, and the run 3)"),
        (lambda raw: raw.update(optimizer_states=[3]), "has another structure than the state of this run"),
        (
            lambda raw: raw["optimizer_states"][0]["param_groups"].pop(),
            "has another structure than the state",
        ),
        (lambda raw: moments(raw).update(exp_avg=torch.zeros(2)), "is damaged: its exp_avg of the shape"),
        (lambda raw: raw.update(lr_schedulers=[{"x": 1}, 3]), "has another structure than the state"),
        (lambda raw: raw.pop("rng"), "has another structure than the state of this run (KeyError: 'rng')"),
        (
            lambda raw: raw["rng"].update(cpu=torch.zeros(3)),
            "has another structure than the state of this run",
        ),
        (lambda raw: raw["ema"]["ema"].pop("updates"), "has other averages than those of this run (KeyError"),
        (
            lambda raw: raw["ema"]["ema"]["network"].update({"backbone.final.linear.bias": torch.zeros(3)}),
            "has other averages than those of this run (RuntimeError",
        ),
        (
            lambda raw: raw["state_dict"].update({"network.backbone.final.linear.bias": torch.zeros(3)}),
            "has another structure than the state of this run (RuntimeError",
        ),
    ],
)
def test_junk_in_the_state_is_one_sentence(
    cli: CommandLine, trained: Trained, damage: Damage, said: str
) -> None:
    raw = torch.load(trained() / "checkpoints/last.ckpt", weights_only=True)
    damage(raw)
    torch.save(raw, "bad.ckpt")
    message = cli.error("train", "run_dir=other", "ckpt=bad.ckpt", "trainer.max_steps=6")
    assert message.startswith("ckpt=bad.ckpt ")
    assert said in message
    assert not Path("other/checkpoints/last.ckpt").exists()
