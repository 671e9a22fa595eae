"""muP: the change in a few steps does not depend on the width (arXiv 2203.03466, appendix D)."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rfdit.conditioning import LabelConditioner
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.training.optim import AdamW, AdamWMuP, ConstantSchedule
from tests.support.commands.command_line import CommandLine

WIDTHS, BASE, STEPS = [64, 128, 256, 512], 64, 4
SETTINGS = {"lr": 4e-3, "betas": [0.9, 0.99], "weight_decay": 0.1, "schedule": ConstantSchedule()}
PLACES = ["patches", "time", "modulation", "blocks.0", "blocks.1", "final"]


def build(width: int, base_width: int | None, *, bottleneck: int | None = None) -> Network:
    """Two blocks with heads of 16, on 4 x 8 x 8 latents."""
    torch.manual_seed(0)
    backbone = DiT(
        width=width,
        depth=2,
        num_heads=width // 16,
        patch_size=2,
        in_channels=4,
        input_size=8,
        patch_bottleneck=bottleneck,
        base_width=base_width,
    )
    return Network(backbone=backbone, conditioner=LabelConditioner(num_classes=10, width=width))


def activations(network: Network) -> dict[str, Tensor]:
    """The output of each place for four fixed samples."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in PLACES:

        def keep(module: nn.Module, args: object, out: Tensor | tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = out.detach() if isinstance(out, Tensor) else torch.cat(out, dim=1).detach()

        hooks.append(network.backbone.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        velocity(network)
    for hook in hooks:
        hook.remove()
    return seen


def velocity(network: Network) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(4, 4, 8, 8, generator=generator)
    cond = network.conditioner(torch.arange(4), device=torch.device("cpu"))
    return network.backbone(z_t, torch.linspace(0.1, 0.9, 4), cond)


def slopes(make: AdamW, base_width: int | None) -> dict[str, float]:
    """d log(rms change of a place's activations in a few steps) / d log(width)."""
    changes: dict[str, list[float]] = {name: [] for name in PLACES}
    target = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for width in WIDTHS:
        network = build(width, base_width)
        optimizer, _ = make(network)
        before = activations(network)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (velocity(network) - target).square().mean().backward()
            optimizer.step()
        for name, after in activations(network).items():
            changes[name].append((after - before[name]).square().mean().sqrt().item())
    return {name: float(np.polyfit(np.log(WIDTHS), np.log(sizes), 1)[0]) for name, sizes in changes.items()}


def test_coordinate_check() -> None:
    """Under muP every place moves by as much at every width; under plain AdamW wide networks move more."""
    mup = slopes(AdamWMuP(**SETTINGS, base_width=BASE), BASE)
    plain = slopes(AdamW(**SETTINGS), None)
    assert all(abs(slope) < 0.1 for slope in mup.values()), mup
    assert all(plain[name] > 0.4 for name in ("modulation", "blocks.0", "blocks.1", "final")), plain


@pytest.mark.parametrize("width", [128, 256])
def test_groups(width: int) -> None:
    network = build(width, BASE)
    optimizer, _ = AdamWMuP(**SETTINGS, base_width=BASE)(network)
    hidden, others = optimizer.param_groups
    ratio = width / BASE
    assert hidden["fused"]
    assert hidden["lr"] == pytest.approx(4e-3 / ratio)
    assert others["lr"] == 4e-3
    # What decay takes off in a step, lr * weight_decay, does not depend on the width.
    assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])
    names = {id(p): name for name, p in network.named_parameters()}
    assert len(hidden["params"]) + len(others["params"]) == len(names) - 1  # but the frozen positions
    # A matrix is in the first group if its fan-in is larger in a wider network.
    wider = dict(build(2 * width, BASE).named_parameters())
    for group in (hidden, others):
        for parameter in group["params"]:
            name = names[id(parameter)]
            grows = parameter.ndim == 2 and wider[name].shape[1] > parameter.shape[1]
            grows = grows and not name.startswith("conditioner")  # an embedding reads one row
            assert grows == (group is hidden), name


def test_at_the_base_width_it_is_adamw() -> None:
    plain, mup = build(BASE, None), build(BASE, BASE)
    for network, make in ((plain, AdamW(**SETTINGS)), (mup, AdamWMuP(**SETTINGS, base_width=BASE))):
        optimizer, _ = make(network)
        velocity(network).sum().backward()
        optimizer.step()
    for (name, p), q in zip(plain.named_parameters(), mup.parameters()):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("base_width", [None, BASE])
def test_initial_sizes(base_width: int | None) -> None:
    """The output of the input layers is equally large at every width only with muP's initialisation."""
    sizes = [build(width, base_width).backbone.patches.proj.weight.std().item() for width in (64, 1024)]
    assert (sizes[1] / sizes[0] == pytest.approx(1, abs=0.05)) == (base_width is not None)


def test_the_bottleneck_of_patches_is_the_same_at_every_width() -> None:
    reduce, proj = (
        [build(width, BASE, bottleneck=8).backbone.patches.get_submodule(name) for width in (64, 1024)]
        for name in ("reduce", "proj")
    )
    for narrow, wide in (reduce, proj):
        assert wide.weight.std().item() == pytest.approx(narrow.weight.std().item(), rel=0.3)
    network = build(1024, BASE, bottleneck=8)
    _, others = AdamWMuP(**SETTINGS, base_width=BASE)(network)[0].param_groups
    assert {id(p) for p in network.backbone.patches.parameters()} <= {id(p) for p in others["params"]}


def test_a_resumed_run_follows_its_own_settings() -> None:
    network = build(256, BASE)
    optimizer, schedule = AdamWMuP(**SETTINGS, base_width=BASE)(network)
    saved, steps = copy.deepcopy(optimizer.state_dict()), schedule.state_dict()
    AdamWMuP(**(SETTINGS | {"lr": 1.0, "weight_decay": 0.5}), base_width=128).adopt(saved, steps)
    assert [group["lr"] for group in saved["param_groups"]] == [0.5, 1.0]
    assert [group["weight_decay"] for group in saved["param_groups"]] == [1.0, 0.5]
    assert steps["base_lrs"] == [0.5, 1.0]


def test_what_is_refused() -> None:
    state, schedule = ({"param_groups": [{"lr": 1e-3}]}, {"last_epoch": 0, "base_lrs": [1e-3]})
    make = AdamWMuP(**SETTINGS, base_width=BASE)
    with pytest.raises(ValueError, match="cannot take over the state of optimizer=adamw"):
        make.adopt(state, schedule)
    with pytest.raises(ValueError, match="needs a model with `width` and `inputs`, and Linear does not"):
        make(nn.ModuleDict({"backbone": nn.Linear(2, 2)}))


@pytest.mark.slow
def test_resume_is_bit_equal_to_no_interruption(cli: CommandLine) -> None:
    mup = ["optimizer=adamw_mup", "optimizer.base_width=12", "schedule=constant"]
    cli.train("run_dir=whole", *mup, "trainer.max_steps=4")
    cli.train("run_dir=halves", *mup, "trainer.max_steps=2")
    cli.train("run_dir=halves", *mup, "trainer.max_steps=4", "ckpt=last")
    states = [
        torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "halves")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
