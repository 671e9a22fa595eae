"""A training step on a GPU: nothing waits for it, refused steps stay on it, FP8 trains."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.batch import Batch, Condition
from rfdit.callbacks import SpikeGuard
from rfdit.conditioning import LabelConditioner, TextConditioner
from rfdit.ema import Averages, FixedDecay
from rfdit.model import DiT, MMDiT
from rfdit.model.acceleration import use_fp8
from rfdit.network import Network
from rfdit.objective import IndependentCoupling, LogitNormalTime, VelocityMatching
from rfdit.text_encoder.bpe import BPEEncoder
from rfdit.training.module import FlowModule
from rfdit.training.optim import AdamW, ConstantSchedule
from tests.support.gpu.watch import no_waiting

BATCH, CLASSES = 4, 5
SIZE = {"width": 64, "depth": 2, "num_heads": 1, "patch_size": 4, "in_channels": 3, "input_size": 16}


class Training:
    """A `FlowModule` with its optimiser, guard and average, and no Trainer around it."""

    def __init__(self, kind: str, device: torch.device, *, lr: float = 1e-3) -> None:
        torch.manual_seed(0)
        self.device, self.kind = device, kind
        self.module = FlowModule(
            network=self._network(kind),
            autoencoder=IdentityAutoencoder(),
            objective=VelocityMatching(time=LogitNormalTime(), coupling=IndependentCoupling()),
            optimizer=AdamW(lr=lr, betas=(0.9, 0.99), weight_decay=0.0, schedule=ConstantSchedule()),
            seed=0,
            record={},
        ).to(device)
        self.optimizer, self.schedule = self.module.optimizer(self.module.network)
        self.averages = Averages(
            network=self.module.network, profiles={"ema": FixedDecay(decay=0.99, warmup=True)}
        )
        self.averages.start(self.module.network, {})

    @staticmethod
    def _network(kind: str) -> Network:
        if kind == "labels":
            return Network(
                backbone=DiT(**SIZE), conditioner=LabelConditioner(num_classes=CLASSES, width=64, drop=0.5)
            )
        backbone = MMDiT(**SIZE, pooled_width=32, token_width=32)
        encoder = BPEEncoder(width=32, length=8)
        return Network(backbone=backbone, conditioner=TextConditioner(encoder=encoder, drop=0.5))

    def batch(self) -> Batch:
        """A batch on the device, where the loader's prefetching leaves it; captions are words on the host."""
        images = torch.randint(0, 256, (BATCH, 3, 16, 16), dtype=torch.uint8)
        condition = None
        if self.kind == "cached text":
            mask = torch.arange(8) < torch.tensor([[8], [3], [2], [5]])
            condition = Condition(torch.randn(BATCH, 32), torch.randn(BATCH, 8, 32).bfloat16(), mask)
        return Batch(
            images=images,
            positions=torch.arange(BATCH),
            labels=torch.arange(BATCH) % CLASSES,
            captions=["a red circle", "", "two words", "a large blue star"],
            condition=condition,
        ).to(self.device)

    def step(self, batch: Batch, spoil: Callable[[Tensor], Tensor] = lambda loss: loss) -> Tensor:
        """Lightning's step with a batch in bf16, without logging; returns the loss, still on the device."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.module.training_step(batch, 0)
        spoil(loss).backward()
        self.module.configure_gradient_clipping(self.optimizer, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.averages.update()
        return loss.detach()


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no Trainer
@pytest.mark.parametrize("kind", ["labels", "captions", "cached text"])
def test_nothing_waits_for_the_device(device: torch.device, kind: str) -> None:
    """Forward, backward, clipping, the guard's look at the norm, a step it may refuse, and the average."""
    training = Training(kind, device)
    spikes = SpikeGuard(factor=10.0, window=2)
    spikes._norms = spikes._norms.to(device)
    training.module.step_guards.append(spikes._refuses)
    batch = training.batch()
    for _ in range(3):  # the guard's window is full, and all state is there
        training.step(batch)
    with no_waiting(device):
        losses = torch.stack([training.step(batch) for _ in range(3)])
    assert bool(losses.isfinite().all())
    assert training.averages.updates == {"ema": 6}
    assert spikes.skipped == 0


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_step_is_refused_on_the_device(device: torch.device) -> None:
    """A gradient that is not finite leaves weights, moments and the step count, and the host does not wait."""
    training = Training("labels", device)
    training.module.step_guards.append(lambda norm: ~torch.isfinite(norm))
    batch = training.batch()
    training.step(batch)

    def state() -> list[Tensor]:
        moments = [x for entry in training.optimizer.state.values() for x in entry.values()]
        return [x.detach().clone() for x in [*training.module.network.parameters(), *moments]]

    before = state()
    with no_waiting(device):
        training.step(batch, spoil=lambda loss: loss * float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    training.step(batch)
    assert not all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_the_watch_sees_waits(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("a CPU is never waited for")
    with no_waiting(device), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=device).item()


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_fp8_trains_like_bf16(device: torch.device, fp8: None) -> None:
    """Losses of a few steps from the same weights are within a twentieth, and fall."""
    losses = []
    for eight in (False, True):
        training = Training("labels", device, lr=1e-2)
        if eight:
            use_fp8(training.module.network.backbone, emulate=device.type == "cpu")
        batch = training.batch()
        losses.append(torch.stack([training.step(batch) for _ in range(8)]).cpu())
    bf16, fp8_losses = losses
    assert bool(fp8_losses.isfinite().all())
    assert not torch.equal(bf16, fp8_losses)
    torch.testing.assert_close(fp8_losses, bf16, rtol=0.05, atol=0)
    assert fp8_losses[-1] < 0.9 * fp8_losses[0]
