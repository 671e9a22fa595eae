"""Work that is done once for all evaluations changes none of them: rounding weights, leaving out padding."""

from pathlib import Path

import pytest
import torch

from rfdit.batch import Condition
from rfdit.generate.load import load_network
from rfdit.model.acceleration import round_weights
from rfdit.sampler import ClassifierFree, NoGuidance
from rfdit.sampler.guidance import without_padding
from tests.support.training.checkpoints import LABELS, write_checkpoint

CPU = torch.device("cpu")
T = torch.tensor([0.1, 0.9, 0.4])


@pytest.mark.parametrize("overrides", [[], LABELS, ["model.qk_norm=false"]], ids=["mmdit", "dit", "no norms"])
@torch.no_grad()
def test_weights_rounded_once_give_autocasts_bits(tmp_path: Path, overrides: list[str]) -> None:
    saved = write_checkpoint(tmp_path / "run.ckpt", *overrides)
    network = load_network(saved, "ema")
    inputs = [0, 4, 2] if overrides == LABELS else ["a red circle", "a small blue star", ""]
    z, cond = torch.randn(3, 3, 32, 32), network.conditioner(inputs, device=CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network.backbone(z, T, cond)
        round_weights(network.backbone, torch.bfloat16)
        assert torch.equal(network.backbone(z, T, cond), expected)
    bits = {
        name.split(".")[0]: p.dtype for name, p in network.backbone.named_parameters() if "norm" not in name
    }
    assert {name for name, dtype in bits.items() if dtype == torch.bfloat16} == {"blocks", "modulation"}
    assert bits["time"] == torch.float32  # neighbouring times differ by less than bf16 resolves


@torch.no_grad()
def test_padding_is_left_out(tmp_path: Path) -> None:
    """The same velocities from fewer tokens: those that some caption of the batch has."""
    saved = write_checkpoint(tmp_path / "run.ckpt")
    network, lengths = load_network(saved, "ema"), []

    def counting(z: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        assert cond.tokens is not None
        lengths.append((cond.tokens.shape[1], cond.mask is not None))
        return network.backbone(z, t, cond)

    z, t = torch.randn(2, 3, 32, 32), torch.tensor(0.4)
    cond = network.conditioner(["a red circle", "a blue star"], device=CPU)  # 5 tokens of 16, ends included
    null = network.conditioner.null(device=CPU).expand(2)
    plain = NoGuidance()(counting, cond, null)(z, t)
    torch.testing.assert_close(plain, network.backbone(z, t.expand(2), cond), atol=1e-5, rtol=1e-5)
    for batched in (True, False):
        guided = ClassifierFree(scale=2.0, batched=batched)(counting, cond, null)(z, t)
        u = network.backbone(z, t.expand(2), null)
        torch.testing.assert_close(guided, u + 2 * (plain - u), atol=1e-5, rtol=1e-5)
    assert lengths == [(5, False), (5, True), (5, False), (2, False)]
    assert without_padding(Condition(pooled=torch.ones(2, 3))).tokens is None
