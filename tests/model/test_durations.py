"""Networks that also take a duration: off as they were, on as without at the start, and then a function of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rfdit.batch import Condition
from rfdit.model import DiT, Flux, MMDiT, TokenDiT

SMALL: dict[str, Any] = {
    "width": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 3, "input_size": 8,
}  # fmt: skip
TEXT = {"pooled_width": 10, "token_width": 12}
COND = Condition(torch.randn(3, 10), torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool))
NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "dit": (DiT, {"pooled_width": 10}),
    "mmdit": (MMDiT, TEXT),
    "flux": (Flux, TEXT),
    "token_dit": (TokenDiT, {"pooled_width": 10, "conditioning": "in_context"}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_starts_as_the_network_without(kind: str) -> None:
    make, settings = NETWORKS[kind]
    plain, other = make(**SMALL, **settings), make(**SMALL, **settings, durations=True)
    added = set(other.state_dict()) - set(plain.state_dict())
    assert added == {
        f"time.duration.{layer}.{part}" for layer in ("hidden", "out") for part in ("weight", "bias")
    }
    for parameter in plain.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    other.load_state_dict(plain.state_dict(), strict=False)
    z, t = torch.randn(3, 3, 8, 8), torch.rand(3)
    timed = replace(COND, duration=t / 2)
    expected = plain(z, t, COND)
    for cond in (COND, timed):
        assert torch.equal(other(z, t, cond), expected)
    nn.init.normal_(other.time.duration.out.weight, std=0.1)
    assert not torch.equal(other(z, t, timed), expected)
    # None is a duration of zero.
    assert torch.equal(other(z, t, COND), other(z, t, replace(COND, duration=torch.zeros(3))))
    with pytest.raises(ValueError, match=r"model\.durations=false has velocities at single times"):
        plain(z, t, timed)
