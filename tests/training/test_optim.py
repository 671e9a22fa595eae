"""Schedules have the shapes that their names say."""

import pytest
import torch
from torch import nn

from rfdit.training.optim import AdamW, ConstantSchedule, DecaySchedule


def test_constant_after_warm_up() -> None:
    schedule = ConstantSchedule(warmup_steps=4)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_no_warm_up_starts_at_one() -> None:
    assert ConstantSchedule()(0) == 1


@pytest.mark.parametrize("cosine", [False, True])
def test_decay_ends_at_final(cosine: bool) -> None:
    schedule = DecaySchedule(warmup_steps=10, total_steps=110, final=0.1, cosine=cosine)
    factors = [schedule(step) for step in range(10, 111)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.55)  # half way, for the line and the half cosine alike
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)
    assert schedule(10_000) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    schedule = DecaySchedule(warmup_steps=100, total_steps=3)
    assert [schedule(step) for step in range(3)] == pytest.approx([1 / 101, 2 / 101, 3 / 101])


def test_adamw_is_fused_and_takes_the_schedule() -> None:
    network = nn.Linear(3, 1)
    make = AdamW(lr=0.1, betas=[0.9, 0.99], weight_decay=0.2, schedule=ConstantSchedule(warmup_steps=1))
    optimizer, schedule = make(network)
    group = optimizer.param_groups[0]
    assert group["fused"]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.9, 0.99), 0.2, pytest.approx(0.05))
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    schedule.step()
    assert group["lr"] == pytest.approx(0.1)
    assert schedule.state_dict()["lr_lambdas"] == [None]  # a resumed run takes its own schedule
