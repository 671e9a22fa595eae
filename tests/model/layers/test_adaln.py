"""The kernels of adaLN compute what its formula says, forwards and backwards; Triton's interpreter runs them."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rfdit
from rfdit.batch import Condition
from rfdit.model import DiT, MMDiT
from rfdit.model.layers import adaln

triton = pytest.importorskip("triton")  # which PyTorch brings on Linux alone
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels serve every tensor: on a CPU by Triton's interpreter, which tests/conftest.py asks for."""
    monkeypatch.setattr(adaln, "has_kernels", lambda x: True)


Inputs = dict[str, Tensor]


def inputs(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Modulations are rows of a larger table, as in a network."""
    table = torch.randn(2, 6, width, device=DEVICE)
    x = torch.randn(2, tokens, width, device=DEVICE)
    y = torch.randn(2, tokens, width, device=DEVICE).to(dtype)
    return {"x": x, "y": y, "gate": table[:, 2], "shift": table[:, 3], "scale": table[:, 4]}


def outputs_and_gradients(given: Inputs, *, gated: bool, double: bool = False) -> list[Tensor]:
    """x', h, and the gradients of a sum in which both take part."""
    leaves = {
        name: (t.double() if double else t).detach().clone().requires_grad_() for name, t in given.items()
    }
    if gated:
        x, h = adaln.gated_adaln(*(leaves[name] for name in ("x", "gate", "y", "shift", "scale")))
    else:
        x, h = adaln.adaln(leaves["x"], leaves["shift"], leaves["scale"])
    weights = torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x)
    (x * weights + h * weights.flip(-1).square()).sum().backward()
    return [x, h, *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(4, 16), (33, 48), (70, 96)])
def test_they_agree_with_the_formula_in_double_precision(
    kernels: None, monkeypatch: pytest.MonkeyPatch, gated: bool, tokens: int, width: int
) -> None:
    given = inputs(tokens, width)
    found = outputs_and_gradients(given, gated=gated)
    monkeypatch.setattr(adaln, "has_kernels", lambda x: False)
    monkeypatch.setattr(adaln.F, "layer_norm", layer_norm_in_double)
    expected = outputs_and_gradients(given, gated=gated, double=True)
    assert len(found) == len(expected) == (7 if gated else 5)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_vectors_may_lie_in_any_order(kernels: None) -> None:
    given = inputs(5, 16)
    usual = outputs_and_gradients(given, gated=True)
    given |= {name: given[name].t().contiguous().t() for name in ("gate", "shift", "scale")}
    assert given["gate"].stride(-1) != 1
    for ours, theirs in zip(outputs_and_gradients(given, gated=True), usual):
        torch.testing.assert_close(ours, theirs)


def layer_norm_in_double(x: Tensor, shape: torch.Size, eps: float) -> Tensor:
    """`modulated_norm` asks for float32; this keeps the double precision of what it is given."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def test_under_autocast_they_give_what_the_next_product_takes(kernels: None) -> None:
    given = inputs(5, 32, torch.bfloat16)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        x, h = adaln.gated_adaln(**given)
    assert (x.dtype, h.dtype) == (torch.float32, torch.bfloat16)
    expected = adaln.modulated_norm(
        given["x"] + given["gate"][:, None] * given["y"], given["shift"], given["scale"]
    )
    torch.testing.assert_close(h, expected.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_a_network_has_the_same_gradients(
    kernels: None, monkeypatch: pytest.MonkeyPatch, kind: str, recompute: str
) -> None:
    shape = {"width": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 4, "input_size": 4}
    cond = Condition(pooled=torch.randn(3, 32, device=DEVICE))
    if kind == "dit":
        network: torch.nn.Module = DiT(**shape, recompute=recompute)
    else:
        network = MMDiT(**shape, pooled_width=32, token_width=8, recompute=recompute)
        tokens, mask = torch.randn(3, 5, 8, device=DEVICE), torch.ones(3, 5, dtype=torch.bool, device=DEVICE)
        mask[0, 3:] = False
        cond = Condition(pooled=cond.pooled, tokens=tokens, mask=mask)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    network.to(DEVICE)
    z, t = torch.randn(3, 4, 4, 4, device=DEVICE), torch.rand(3, device=DEVICE)

    def gradients() -> dict[str, Tensor]:
        trained = copy.deepcopy(network)
        trained(z, t, cond).square().sum().backward()
        return {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}

    found = gradients()
    monkeypatch.setattr(adaln, "has_kernels", lambda x: False)
    expected = gradients()
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


# In a process of its own: the checks of signatures that these tests run with would break the graph.
COMPILED = """
import torch
from rfdit.model import DiT
from rfdit.model.layers import adaln

adaln.has_kernels = lambda x: True
device = "cuda" if torch.cuda.is_available() else "cpu"
block = DiT(width=32, depth=1, num_heads=2, patch_size=2, in_channels=4, input_size=4).to(device).blocks[0]
leaves = [torch.randn(2, *shape, 32, device=device, requires_grad=True) for shape in ((4,), (6,))]
compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
ours, theirs = (torch.autograd.grad(f(*leaves).square().sum(), leaves) for f in (compiled, block))
torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
print("equal")
"""


@pytest.mark.slow
def test_a_compiled_block_holds_them_in_one_graph() -> None:
    root = Path(rfdit.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=root, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr
