"""DiT computes what diffusers' DiTTransformer2DModel computes, on the same weights.

Where the two definitions differ, diffusers' is set to ours first, and a test states the difference:
  - every diffusers block embeds time and label anew, with weights of its own; ours does it once;
  - its time frequencies are 10000^(-i/127), the original DiT's and ours 10000^(-i/128);
  - its second LayerNorm of a block has eps 1e-5 by default, the original's and ours 1e-6;
  - its timesteps are 0 to 1000, our times 0 to 1.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.conditioning import LabelConditioner
from rfdit.interchange.for_diffusers.names import dit_stacks
from rfdit.interchange.naming import shapes_of, to_ours
from rfdit.model import DiT
from rfdit.network import Network

Randomise = Callable[[nn.Module], nn.Module]
CPU = torch.device("cpu")
WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIZE, CLASSES = 48, 3, 4, 2, 4, 8, 10


def reference(randomise: Randomise, *, norm_eps: float = 1e-6) -> DiTTransformer2DModel:
    network = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        num_layers=DEPTH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=norm_eps,
    )
    return randomise(network).eval()


def as_ours(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """The reference with one embedding for all blocks and the original's frequencies."""
    shared = network.transformer_blocks[0].norm1.emb
    shared.time_proj.downscale_freq_shift = 0
    for block in network.transformer_blocks:
        block.norm1.emb = shared
    return network


def copied(theirs: DiTTransformer2DModel) -> tuple[DiT, LabelConditioner]:
    """Our network with the reference's weights."""
    dit = DiT(
        width=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, in_channels=CHANNELS, input_size=SIZE
    )
    labels = LabelConditioner(num_classes=CLASSES, width=WIDTH)
    network = Network(backbone=dit, conditioner=labels)
    state = to_ours(dit_stacks(DEPTH), theirs.state_dict(), shapes_of(network.state_dict()))
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["backbone.positions.table"], [])
    return dit, labels


Z = torch.randn(3, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
T = torch.tensor([0.003, 0.4, 0.97])
LABELS = [0, 7, 9]


def ours_on(networks: tuple[DiT, LabelConditioner]) -> Tensor:
    dit, labels = networks
    return dit(Z, T, labels(LABELS, device=CPU))


def theirs_on(network: DiTTransformer2DModel) -> Tensor:
    return network(Z, timestep=1000 * T, class_labels=torch.tensor(LABELS)).sample


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def test_the_velocity_is_the_same(randomise: Randomise) -> None:
    theirs = as_ours(reference(randomise))
    assert difference(ours_on(copied(theirs)), theirs_on(theirs)) <= 1e-5


def test_the_gradients_are_the_same(randomise: Randomise) -> None:
    """Gradients of the loss with respect to the first and the last weights."""
    theirs = as_ours(reference(randomise))
    ours = copied(theirs)
    weight = torch.randn_like(Z)
    (ours_on(ours) * weight).sum().backward()
    (theirs_on(theirs) * weight).sum().backward()
    ends = [
        (ours[0].patches.proj.weight, theirs.pos_embed.proj.weight),
        (ours[0].final.linear.weight, theirs.proj_out_2.weight),
        (
            ours[1].table.weight,
            theirs.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight,
        ),
    ]
    for mine, other in ends:
        assert mine.grad is not None
        assert difference(mine.grad, other.grad.flatten(1)) <= 1e-4


def test_the_position_tables_are_the_same(randomise: Randomise) -> None:
    theirs = reference(randomise)
    ours, _ = copied(theirs)
    torch.testing.assert_close(ours.positions.table.data, theirs.pos_embed.pos_embed[0])


def test_the_null_label_is_the_same_row(randomise: Randomise) -> None:
    """Both keep one row more than there are classes; diffusers reaches it by dropping labels."""
    theirs = as_ours(reference(randomise))
    ours, labels = copied(theirs)
    dropped = theirs(Z, timestep=1000 * T, class_labels=torch.full((3,), CLASSES)).sample
    null: Condition = labels.null(device=CPU).expand(3)
    assert difference(ours(Z, T, null), dropped) <= 1e-5


def test_difference_blocks_embed_the_condition_separately(randomise: Randomise) -> None:
    theirs = reference(randomise)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    assert difference(ours_on(copied(theirs)), theirs_on(theirs)) > 1e-2


def test_difference_the_frequencies_end_one_step_later(randomise: Randomise) -> None:
    theirs = as_ours(reference(randomise))
    theirs.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 1
    assert difference(ours_on(copied(theirs)), theirs_on(theirs)) > 1e-2


def test_difference_the_second_norms_epsilon(randomise: Randomise) -> None:
    theirs = as_ours(reference(randomise, norm_eps=1e-3))
    assert difference(ours_on(copied(theirs)), theirs_on(theirs)) > 1e-5


@pytest.mark.parametrize("time", [0.0, 0.5])
def test_times_are_thousandths_of_timesteps(randomise: Randomise, time: float) -> None:
    theirs = as_ours(reference(randomise))
    ours, labels = copied(theirs)
    t = torch.full((3,), time)
    expected = theirs(Z, timestep=1000 * t, class_labels=torch.tensor(LABELS)).sample
    assert difference(ours(Z, t, labels(LABELS, device=CPU)), expected) <= 1e-5
