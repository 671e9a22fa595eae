"""SD3Transformer2DModel as MMDiT: the same velocity on copied random weights, and the weights back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.interchange.for_diffusers.folder import as_diffusers
from rfdit.interchange.for_diffusers.transformer import from_sd3, read_transformer
from rfdit.model import MMDiT
from tests.support.models.parity import check_parity
from tests.support.training.states import assert_equal

Randomise = Callable[[nn.Module], nn.Module]
T = torch.tensor([0.003, 0.4, 0.97])
GENERATOR = torch.Generator().manual_seed(4)
COND = Condition(torch.randn(3, 12, generator=GENERATOR), torch.randn(3, 5, 20, generator=GENERATOR))


def reference(randomise: Randomise, **changes: object) -> Any:
    settings = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3,
        "attention_head_dim": 12, "num_attention_heads": 4, "joint_attention_dim": 20,
        "caption_projection_dim": 48, "pooled_projection_dim": 12, "pos_embed_max_size": 12, "qk_norm": "rms_norm",
    } | changes  # fmt: skip
    return randomise(SD3Transformer2DModel(**settings)).eval()


def on(network: Any, z: Tensor, t: Tensor = T) -> Tensor:
    return network(z, COND.tokens, COND.pooled, timestep=1000 * t).sample


@pytest.mark.parametrize("qk_norm", ["rms_norm", None])
@pytest.mark.parametrize("size", [(8, 8), (6, 14)])
def test_there_and_back(randomise: Randomise, qk_norm: str | None, size: tuple[int, int]) -> None:
    """At any size, since an image has the middle of their table of positions."""
    theirs = reference(randomise, qk_norm=qk_norm)
    state, settings = from_sd3(theirs.state_dict(), dict(theirs.config))
    ours = MMDiT(**settings)
    ours.load_state_dict({name.removeprefix("backbone."): x for name, x in state.items()})
    z = torch.randn(3, 4, *size)
    check_parity(
        f"SD3, norms of heads {qk_norm}", lambda z, t: ours(z, t, COND), lambda z, t: on(theirs, z, t), z, T
    )
    back = as_diffusers(ours, state)
    assert type(back) is SD3Transformer2DModel
    assert_equal(back.state_dict(), theirs.state_dict())
    assert dict(back.config) == dict(theirs.config)


def test_the_table_is_sd3s_before_training(randomise: Randomise) -> None:
    theirs = reference(randomise)
    _, settings = from_sd3(theirs.state_dict(), dict(theirs.config))
    torch.testing.assert_close(
        MMDiT(**settings).positions.table, theirs.pos_embed.pos_embed[0], atol=1e-5, rtol=1e-5
    )


def test_a_folder_and_a_file_are_read(randomise: Randomise, tmp_path: Path) -> None:
    theirs = reference(randomise)
    theirs.save_pretrained(tmp_path / "pipe/transformer", max_shard_size="100KB")
    assert len(list((tmp_path / "pipe/transformer").glob("*.safetensors"))) > 1
    for path in (tmp_path / "pipe", tmp_path / "pipe/transformer"):
        state, config = read_transformer(path)
        assert from_sd3(state, config)[1]["num_heads"] == 4
        assert all(torch.equal(state[name], x) for name, x in theirs.state_dict().items())
    torch.save(theirs.state_dict(), tmp_path / "one.pt")
    state, config = read_transformer(tmp_path / "one.pt")
    assert config == {}
    assert from_sd3(state, config)[1]["num_heads"] == 4  # by the norms of heads
    with pytest.raises(ValueError, match="has no transformer"):
        read_transformer(tmp_path)


def test_others_are_refused(randomise: Randomise) -> None:
    dual = reference(randomise, dual_attention_layers=(0,)).state_dict()
    with pytest.raises(ValueError, match=r"a second attention in its blocks \(SD3\.5 medium\)"):
        from_sd3(dual, {})
    with pytest.raises(ValueError, match=r"file lacks pos_embed\.proj\.weight"):
        from_sd3({}, {})
    whole = reference(randomise).state_dict()
    with pytest.raises(ValueError, match=r"file needs more than MMDiT has \(as extra\)"):
        from_sd3(whole | {"extra": torch.zeros(1)}, {})
