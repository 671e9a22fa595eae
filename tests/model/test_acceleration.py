"""FP8 products, emulated: near the exact ones, with the same parameters."""

import pytest
import torch

from rfdit.batch import Condition
from rfdit.model import DiT
from rfdit.model.acceleration import use_fp8

pytest.importorskip("torchao", reason="torchao is not installed")


def gradients(network: DiT) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of its square's mean."""
    generator = torch.Generator().manual_seed(1)
    z, pooled = torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 32, generator=generator)
    out = network(z, torch.linspace(0.1, 0.9, 4), Condition(pooled=pooled))
    out.square().mean().backward()
    return out.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_it_is_the_same_network_in_fewer_bits() -> None:
    torch.manual_seed(0)
    networks = [
        DiT(width=32, depth=2, num_heads=2, patch_size=2, in_channels=4, input_size=8) for _ in range(2)
    ]
    for parameter in networks[0].parameters():  # zero modulations would hide the blocks
        torch.nn.init.normal_(parameter, std=0.1)
    networks[1].load_state_dict(networks[0].state_dict())
    before = dict(networks[1].named_parameters())
    use_fp8(networks[1], emulate=True)
    after = dict(networks[1].named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)  # what an optimiser or a checkpoint knows
    replaced = [type(m).__name__ for m in networks[1].modules()].count("Float8Linear")
    assert replaced == 2 * 4  # qkv, proj, and the MLP's two, of each block
    (exact, exact_gradients), (near, near_gradients) = map(gradients, networks)
    assert not torch.equal(exact, near)
    assert torch.linalg.norm(exact - near) < 0.1 * torch.linalg.norm(exact)
    assert exact_gradients.keys() == near_gradients.keys()
    for name, gradient in exact_gradients.items():
        error = torch.linalg.norm(gradient - near_gradients[name]) / torch.linalg.norm(gradient)
        assert error < 0.25, name
