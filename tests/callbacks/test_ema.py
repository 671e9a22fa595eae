"""The average is the formula's, owns its memory, and survives."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

from rfdit.callbacks import EMA
from rfdit.conditioning import LabelConditioner
from rfdit.network import Network


class FakeModule(L.LightningModule):
    """What the callback touches of a FlowModule."""

    def __init__(self) -> None:
        super().__init__()
        labels = LabelConditioner(num_classes=3, width=4)
        labels.table.weight.requires_grad_(False)
        self.network = Network(backbone=nn.Linear(3, 4), conditioner=labels)
        self.evaluated: list[nn.Module] = []  # a list, so that it is no part of the module

    def evaluate_with(self, network: nn.Module) -> None:
        self.evaluated = [network]


class FakeTrainer(L.Trainer):
    """Counts steps, and is nothing else of a trainer."""

    global_step = 0  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> tuple[EMA, FakeModule, FakeTrainer]:
    monkeypatch.setattr("rfdit.callbacks.ema.FlowModule", FakeModule)
    ema, module, trainer = EMA(decay=0.9, warmup=False), FakeModule(), FakeTrainer()
    ema.on_fit_start(trainer, module)
    ema.on_train_start(trainer, module)
    return ema, module, trainer


def step(ema: EMA, module: FakeModule, trainer: FakeTrainer) -> None:
    with torch.no_grad():
        for p in module.network.parameters():
            p.add_(torch.randn_like(p))
    trainer.global_step += 1
    ema.on_train_batch_end(trainer, module, None, None, 0)


def test_starts_as_a_frozen_float32_copy_that_is_evaluated(
    started: tuple[EMA, FakeModule, FakeTrainer],
) -> None:
    ema, module, _ = started
    assert module.evaluated == [ema.network]
    assert ema.network is not None
    for average, weight in zip(ema.network.parameters(), module.network.parameters()):
        assert average.dtype == torch.float32
        assert not average.requires_grad
        assert torch.equal(average, weight.float())
        assert average.data_ptr() != weight.data_ptr()
    assert ema.network not in list(module.modules())


def test_follows_the_formula(started: tuple[EMA, FakeModule, FakeTrainer]) -> None:
    ema, module, trainer = started
    expected = [p.detach().float().clone() for p in module.network.parameters()]
    for _ in range(5):
        step(ema, module, trainer)
        weights = module.network.parameters()
        expected = [0.9 * e + 0.1 * w.float() if w.requires_grad else e for e, w in zip(expected, weights)]
    assert ema.network is not None
    for average, value in zip(ema.network.parameters(), expected):
        torch.testing.assert_close(average.data, value.detach(), rtol=1e-5, atol=1e-6)


def test_does_nothing_while_gradients_accumulate(started: tuple[EMA, FakeModule, FakeTrainer]) -> None:
    ema, module, trainer = started
    assert ema.network is not None
    before = copy.deepcopy(ema.network.state_dict())
    ema.on_train_batch_end(trainer, module, None, None, 0)
    assert ema.updates == 0
    assert all(torch.equal(before[name], value) for name, value in ema.network.state_dict().items())


def test_warm_up_keeps_less_at_first() -> None:
    ema = EMA(decay=0.9999)
    assert [ema.decay_at(n) for n in (0, 90)] == [0.1, 0.91]
    assert ema.decay_at(10**6) == 0.9999


def test_state_is_restored(started: tuple[EMA, FakeModule, FakeTrainer]) -> None:
    ema, module, trainer = started
    step(ema, module, trainer)
    checkpoint: dict[str, object] = {}
    ema.on_save_checkpoint(trainer, module, checkpoint)
    other = EMA(decay=0.9)
    other.on_load_checkpoint(trainer, module, checkpoint)
    other.on_fit_start(trainer, module)
    assert other.updates == 1
    assert ema.network is not None
    assert other.network is not None
    for name, value in ema.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], value)


def test_decay_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.ema\.decay=1.0 must be at least 0 and less than 1"):
        EMA(decay=1.0)
