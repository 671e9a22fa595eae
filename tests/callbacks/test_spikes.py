"""A step that the guard refuses changes nothing but the count of refused steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Batch
from rfdit.callbacks import SpikeGuard
from rfdit.training.module import FlowModule
from rfdit.training.optim import refuse_step
from tests.support.commands.command_line import CommandLine, metrics

SPIKES = ["spikes=median", "callbacks.spikes.window=3", "trainer.precision=fp32"]


def spoil(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiplies the gradient, not the loss, of the given steps."""
    step = FlowModule.training_step

    def spoilt(module: FlowModule, batch: Batch, batch_idx: int) -> Tensor:
        loss = step(module, batch, batch_idx)
        factor = factors.get(module.trainer.global_step, 1.0)
        loss.register_hook(lambda gradient: gradient * factor)
        return loss

    monkeypatch.setattr(FlowModule, "training_step", spoilt)


def saved(run: str) -> dict[str, Any]:
    return torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict | list):
        children = state.values() if isinstance(state, dict) else state
        return [leaf for child in children for leaf in flat(child)]
    return [state]


def same(first: Any, second: Any) -> bool:
    pairs = zip(flat(first), flat(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("fused", [True, False])
def test_a_refused_step_changes_nothing(fused: bool) -> None:
    """Weights, moments and step count, which zeroed gradients would change."""
    network = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=fused)

    def step(refused: bool, scale: float = 1.0) -> None:
        optimizer.zero_grad()
        (scale * network(torch.ones(2, 4)).square().sum()).backward()
        refuse_step(optimizer, torch.tensor(refused))
        optimizer.step()

    def flattened() -> list[Tensor]:
        return [x.clone() for x in [*network.state_dict().values(), *flat(optimizer.state_dict()["state"])]]

    step(False)
    before = flattened()
    step(True, scale=float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, flattened()))
    step(False)
    assert not any(torch.equal(a, b) for a, b in zip(before, flattened()))


@pytest.mark.slow
def test_outliers_are_skipped_and_counted(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {1: 1e4, 5: 1e4, 7: float("inf")})
    for steps in (5, 6, 7, 8):
        cli.train(f"run_dir=run{steps}", f"trainer.max_steps={steps}", "schedule=constant", *SPIKES)
    weights = {n: saved(f"run{n}")["state_dict"] for n in (5, 6, 7, 8)}
    assert same(weights[5], weights[6])  # the sixth step was an outlier,
    assert not same(weights[6], weights[7])
    assert same(weights[7], weights[8])  # the eighth was not finite
    moments = [saved(f"run{n}")["optimizer_states"][0]["state"] for n in (5, 6)]
    assert same(*moments)
    # The second step, of the first three, has no median to be measured by.
    assert [float(row["train/skipped_steps"]) for row in metrics(Path("run8"))] == [0] * 5 + [1, 1, 2]
    assert saved("run8")["global_step"] == 8


@pytest.mark.slow
def test_resume_is_bit_equal_to_no_interruption(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {3: 1e4, 5: 1e4})
    settings = [*SPIKES, "schedule=constant"]
    cli.train("run_dir=whole", *settings, "trainer.max_steps=7")
    cli.train("run_dir=halves", *settings, "trainer.max_steps=4")
    cli.train("run_dir=halves", *settings, "trainer.max_steps=7", "ckpt=last")
    whole, halves = saved("whole"), saved("halves")
    for part in ("state_dict", "optimizer_states", "ema"):
        assert same(whole[part], halves[part]), part
    states = [next(s for k, s in run["callbacks"].items() if "SpikeGuard" in k) for run in (whole, halves)]
    assert states[0]["skipped"] == states[1]["skipped"] == 2
    assert torch.equal(states[0]["norms"], states[1]["norms"])


def test_what_stays_large_is_the_new_normal() -> None:
    guard = SpikeGuard(factor=2, window=5)
    norms = [1.0] * 5 + [10.0] * 5
    refused = [bool(guard._refuses(torch.tensor(norm))) for norm in norms]
    assert refused == [False] * 5 + [True] * 3 + [False] * 2


def test_without_end_the_run_stops(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {step: float("nan") for step in range(2, 99)})
    message = cli.error("train", *SPIKES, "trainer.max_steps=50", "callbacks.spikes.patience=4")
    assert message.startswith("4 steps in a row were skipped up to step 6, since their gradient norms")


@pytest.mark.parametrize("last", [False, True])
def test_a_non_finite_gradient_stops_before_the_weights(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """The loss itself is finite; this holds in the last step of a run, too."""
    cli.train("run_dir=before", "trainer.max_steps=2", "trainer.precision=fp32", "schedule=constant")
    spoil(monkeypatch, {2: float("inf")})
    message = cli.error(
        "train", "run_dir=run", f"trainer.max_steps={3 if last else 9}", "trainer.precision=fp32",
        "schedule=constant",
    )  # fmt: skip
    assert message.startswith("the gradient became non-finite at step 2; the last good state is in run/")
    assert same(saved("run")["state_dict"], saved("before")["state_dict"])
    assert same(saved("run")["optimizer_states"][0]["state"], saved("before")["optimizer_states"][0]["state"])
