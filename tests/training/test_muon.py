"""Muon: an independent reference, the matrices that it takes, and what it leaves to AdamW."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfdit.training.muon import Muon, MuonWithAdamW, orthogonalize
from rfdit.training.optim import AdamW, ConstantSchedule, refuse_step


class Network(nn.Module):
    """The names that a network has around its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.embed = nn.Linear(8, 8)
        self.backbone.blocks = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(24, 8), "norm": nn.RMSNorm(8)})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone.embed(x)
        for block in self.backbone.blocks:
            x = x + block["norm"](block["proj"](block["qkv"](x).tanh()))
        return x.square().mean()


def factory(kind: type[AdamW] = Muon, **settings: Any) -> AdamW:
    return kind(lr=1e-2, betas=[0.9, 0.99], weight_decay=0.1, schedule=ConstantSchedule(), **settings)


def train(network: Network, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        network(torch.randn(32, 8, generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 48), (2, 48, 16)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(shape, generator=generator)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalize(matrices)
    values = u.mT @ found @ vh.mT  # diagonal, since U and V stay those of the matrix
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(values, torch.diag_embed(diagonal), atol=1e-4)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3


def well_conditioned(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A gradient with singular values from 0.5 to 1, for which an iteration in bf16 is accurate to a few percent."""
    u, _, vh = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    return u @ torch.diag(torch.linspace(0.5, 1, min(rows, columns))) @ vh


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (48, 16), (16, 48)])
def test_steps_are_those_of_torch(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, columns, generator=generator)
    mine, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [mine], "matrices": 1, "momentum": 0.95}
    ours = MuonWithAdamW([group], dtype=torch.bfloat16, lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon([other], lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(4):
        mine.grad = well_conditioned(rows, columns, generator)
        other.grad = mine.grad.clone()
        ours.step()
        torchs.step()
    moved = (other - start).norm()
    assert (mine - other).norm() < 0.05 * moved


def test_queries_keys_and_values_are_three_matrices() -> None:
    torch.manual_seed(0)
    network = Network()
    before = network.backbone.blocks[0]["qkv"].weight.detach().clone()
    optimizer, _ = factory(matrix_lr=0.5)(network)
    train(network, optimizer, steps=1)
    step = (before * (1 - 0.5 * 0.1) - network.backbone.blocks[0]["qkv"].weight.detach()) / 0.5
    for part in step.view(3, 8, 8):
        values = torch.linalg.svdvals(part)
        assert values.max() < 1.3  # of one 24 x 8 matrix, scaled by sqrt(3), they would be up to 2.1


def test_all_but_the_matrices_are_adamw_s() -> None:
    torch.manual_seed(0)
    mine = Network()
    other = copy.deepcopy(mine)
    ours, _ = factory(matrix_lr=0)(mine)
    rest = [p for n, p in other.named_parameters() if not n.endswith(("qkv.weight", "proj.weight"))]
    train(mine, ours)
    train(other, torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, fused=True))
    torch.testing.assert_close(mine.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_groups() -> None:
    optimizer, _ = factory(matrix_lr=0.5)(Network())
    found = [(len(g["params"]), g["matrices"], g["lr"]) for g in optimizer.param_groups]
    assert found == [(2, 1, 0.5), (2, 3, 0.5), (8, 0, 1e-2)]


def test_a_refused_step_changes_nothing() -> None:
    network = Network()
    optimizer, _ = factory()(network)
    train(network, optimizer)
    before = copy.deepcopy([network.state_dict(), optimizer.state_dict()["state"]])
    network(torch.full((32, 8), torch.nan)).backward()
    refuse_step(optimizer, torch.tensor(True))
    optimizer.step()
    torch.testing.assert_close(
        [network.state_dict(), optimizer.state_dict()["state"]], before, rtol=0, atol=0
    )
    optimizer.zero_grad()
    network(torch.ones(32, 8)).backward()
    refuse_step(optimizer, torch.tensor(False))
    optimizer.step()
    assert not torch.equal(
        network.backbone.blocks[0]["qkv"].weight, before[0]["backbone.blocks.0.qkv.weight"]
    )


def test_a_loaded_state_goes_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(0)
    whole = Network()
    first = copy.deepcopy(whole)
    optimizer, _ = factory()(whole)
    train(whole, optimizer, 2)
    saved = copy.deepcopy([whole.state_dict(), optimizer.state_dict()])
    train(whole, optimizer, 2)
    first.load_state_dict(saved[0])
    again, _ = factory()(first)
    again.load_state_dict(saved[1])
    train(first, again, 2)
    torch.testing.assert_close(first.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_states_of_adamw_are_refused() -> None:
    network = Network()
    adamw, schedule = factory(AdamW)(network)
    with pytest.raises(ValueError, match="optimizer=muon cannot take over the state of optimizer=adamw"):
        factory().adopt(adamw.state_dict(), schedule.state_dict())
