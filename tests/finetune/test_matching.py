"""Which tensors are taken, resized, left alone and not used."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from rfdit.conditioning import LabelConditioner
from rfdit.finetune.freeze import freeze
from rfdit.finetune.matching import Given, fit
from rfdit.finetune.table import table
from rfdit.model.layers.resizing import Patches, enlargement, resized_positions
from rfdit.network import Network
from tests.support.models.networks import DiTFactory


def network(dit: DiTFactory, *, classes: int = 3, **changes: object) -> Network:
    return Network(backbone=dit(**changes), conditioner=LabelConditioner(num_classes=classes, width=32))


def given(whole: Network, **known: object) -> Given:
    return Given(state=whole.state_dict(), **known)  # type: ignore[arg-type]


def test_a_network_of_the_same_settings_is_taken_whole(dit: DiTFactory) -> None:
    there, here = network(dit), network(dit, initial=True)
    found = fit(here, given(there), resize_patches=False, class_names=None)
    assert found.share == 1.0
    assert not found.initial
    assert not found.unused
    for name, tensor in there.state_dict().items():
        assert torch.equal(here.state_dict()[name], tensor), name


def test_a_deeper_network_starts_with_the_blocks_that_there_are(dit: DiTFactory) -> None:
    """The table of modulations is one tensor for all blocks, and so is left as it was drawn."""
    there, here = network(dit), network(dit, initial=True, depth=3)
    found = fit(here, given(there), resize_patches=False, class_names=None)
    assert "backbone.blocks.1.x.qkv.weight" in found.taken
    assert found.initial["backbone.blocks.2.x.qkv.weight"] == "not among the weights"
    assert found.initial["backbone.modulation.linear.weight"] == "448x32 there, 640x32 here"
    text = table(found)
    assert "initial  backbone.blocks.*.x.mlp_in.bias: not among the weights" in text
    assert f"taken    {len(found.taken)} tensors, {found.count(found.taken):,} parameters" in text


@pytest.mark.parametrize(("own", "patch"), [((8, 8), 4), ((6, 10), 2)])
def test_learned_positions_are_interpolated(dit: DiTFactory, own: tuple[int, int], patch: int) -> None:
    there = network(dit, positions="learned")  # a grid of 4 x 4
    size = [side * 2 for side in own] if patch == 2 else [side * 4 for side in own]
    here = network(dit, initial=True, positions="learned", input_size=size)
    grid = (size[0] // 2, size[1] // 2)
    with torch.no_grad():  # a plane stays the same plane, away from the edges
        rows = torch.arange(16.0) // 4
        there.backbone.positions.table.copy_(rows[:, None].expand(16, 32))
    found = fit(here, given(there, grid=(4, 4)), resize_patches=False, class_names=None)
    assert found.changed["backbone.positions.table"] == f"16x32 to {grid[0] * grid[1]}x32"
    table = rearrange(here.backbone.positions.table.detach(), "(h w) d -> h w d", h=grid[0])
    middle = grid[0] // 2
    expected = (middle + 0.5) * 4 / grid[0] - 0.5
    assert table[middle, grid[1] // 2] == pytest.approx(torch.full((32,), expected), abs=0.05)


def test_positions_of_the_same_grid_stay(dit: DiTFactory) -> None:
    positions = torch.randn(16, 8)
    torch.testing.assert_close(resized_positions(positions, (4, 4), (4, 4)), positions)


def test_computed_positions_are_this_networks(dit: DiTFactory) -> None:
    there, here = network(dit, positions="learned"), network(dit, initial=True)
    before = here.backbone.positions.table.clone()
    found = fit(here, given(there), resize_patches=False, class_names=None)
    assert torch.equal(here.backbone.positions.table, before)
    assert found.unused["backbone.positions.table"] == "this run computes them"
    assert found.share == 1.0


def enlarged(z: Tensor, size: int, own: int) -> Tensor:
    """Every patch of a latent, resized on its own."""
    patches = (
        rearrange(z, "b c (h p) (w q) -> b c h w (p q)", p=size, q=size) @ enlargement(size, own).T.float()
    )
    return rearrange(patches, "b c h w (p q) -> b c (h p) (w q)", p=own, q=own)


def test_larger_patches_read_and_write_what_they_did(dit: DiTFactory, inputs: object) -> None:
    """On latents whose patches are enlarged, the network with larger patches has the enlarged velocity."""
    there, here = network(dit), network(dit, initial=True, patch_size=4, input_size=16)
    known = given(there, patches=Patches(2, 3), grid=(4, 4))
    assert "backbone.patches.proj.weight" in fit(here, known, resize_patches=False, class_names=None).initial
    found = fit(here, known, resize_patches=True, class_names=None)
    assert {"backbone.patches.proj.weight", "backbone.final.linear.weight"} <= found.changed.keys()
    z_t, t, cond = inputs()  # type: ignore[operator]
    with torch.no_grad():
        expected = enlarged(there.backbone(z_t, t, cond), 2, 4)
        torch.testing.assert_close(
            here.backbone(enlarged(z_t, 2, 4), t, cond), expected, rtol=1e-4, atol=1e-5
        )


def test_larger_patches_through_a_bottleneck(dit: DiTFactory, inputs: object) -> None:
    there = network(dit, patch_bottleneck=6)
    here = network(dit, initial=True, patch_bottleneck=6, patch_size=4, input_size=16)
    found = fit(here, given(there, patches=Patches(2, 3), grid=(4, 4)), resize_patches=True, class_names=None)
    assert "backbone.patches.reduce.weight" in found.changed
    assert "backbone.patches.proj.weight" in found.taken
    z_t, t, cond = inputs()  # type: ignore[operator]
    with torch.no_grad():
        expected = enlarged(there.backbone(z_t, t, cond), 2, 4)
        torch.testing.assert_close(
            here.backbone(enlarged(z_t, 2, 4), t, cond), expected, rtol=1e-4, atol=1e-5
        )


def test_more_channels_read_nothing_of_the_new_ones_and_write_zero(dit: DiTFactory, inputs: object) -> None:
    there, here = network(dit), network(dit, initial=True, in_channels=5)
    fit(here, given(there, patches=Patches(2, 3), grid=(4, 4)), resize_patches=True, class_names=None)
    z_t, t, cond = inputs()  # type: ignore[operator]
    with torch.no_grad():
        found = here.backbone(torch.cat([z_t, torch.randn(2, 2, 8, 8)], dim=1), t, cond)
        torch.testing.assert_close(found[:, :3], there.backbone(z_t, t, cond), rtol=1e-4, atol=1e-5)
    assert not found[:, 3:].any()


def test_rows_of_classes_go_by_name(dit: DiTFactory) -> None:
    there, here = network(dit), network(dit, initial=True, classes=4)
    drawn = here.conditioner.table.weight.clone()
    known = given(there, class_names=["cat", "dog", "owl"])
    found = fit(here, known, resize_patches=False, class_names=["owl", "emu", "cat", "dog"])
    assert found.changed["conditioner.table.weight"] == "3 classes by name, and 1 new (emu)"
    rows, theirs = here.conditioner.table.weight, there.conditioner.table.weight
    expected = torch.stack([theirs[2], drawn[1], theirs[0], theirs[1], theirs[3]])
    assert torch.equal(rows, expected)


def test_classes_without_names_are_left_alone(dit: DiTFactory) -> None:
    there, here = network(dit), network(dit, initial=True, classes=4)
    found = fit(here, given(there), resize_patches=False, class_names=None)
    assert "by name where both sides name them" in found.initial["conditioner.table.weight"]


def test_patterns_freeze_and_exempt(dit: DiTFactory) -> None:
    whole = network(dit)
    freeze(whole, ["*", "!conditioner.*", "!*.qkv.*"])
    trained = {name for name, p in whole.named_parameters() if p.requires_grad}
    qkv = {f"backbone.blocks.{i}.x.qkv.{part}" for i in range(2) for part in ("weight", "bias")}
    assert trained == {"conditioner.table.weight", *qkv}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["blocks.*"], r"freeze=blocks.* matches no parameter of the network; names are such as backbone\."),
        (["*"], r"leaves nothing to train"),
    ],
)
def test_patterns_that_make_no_sense(dit: DiTFactory, patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        freeze(network(dit), patterns)
