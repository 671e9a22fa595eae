"""Adapters of a file that may come from anyone: what they may ask for."""

import re

import pytest
import torch
from torch import nn

from rfdit.config.build import build_backbone
from rfdit.model.adapters import TARGETS, LoRA, inject, merged
from tests.support.commands.composing import composed
from tests.support.models.networks import DiTFactory


def tensors(dit: DiTFactory, adapter: LoRA) -> dict[str, torch.Tensor]:
    """Those of trained adapters of a network."""
    network = dit()
    inject(network, adapter)
    generator = torch.Generator().manual_seed(0)
    adapted = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return {name: torch.randn(p.shape, generator=generator) for name, p in adapted.items()}


def test_the_tensors_say_which_layers_are_adapted(dit: DiTFactory) -> None:
    """Not the pattern, which may take for ever: this one does for names of more than thirty characters."""
    given = tensors(dit, LoRA(r=2))
    expected = merged(dit(), LoRA(r=2), given)
    found = merged(dit(), LoRA(r=2, targets="(.+)+!"), given)
    assert found.keys() == expected.keys() == dit().state_dict().keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not torch.equal(found["blocks.0.x.qkv.weight"], dit().state_dict()["blocks.0.x.qkv.weight"])


@pytest.mark.parametrize(
    ("r", "extra", "words"),
    [
        (9_999_999, {}, r"adapter\.r=9999999 is more than 128, the width of the widest of its layers"),
        (3, {}, "is missing, or of another shape"),
        (2, {"blocks.0.x.qkv.lora_C.default.weight": torch.zeros(1)}, "is missing, or of another shape"),
    ],
)
def test_tensors_of_another_adapter_are_refused(
    dit: DiTFactory, r: int, extra: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        merged(dit(), LoRA(r=r), tensors(dit, LoRA(r=2)) | extra)


@pytest.mark.parametrize("model", ["dit", "dit_cross_attention", "flux", "lightningdit", "mmdit"])
def test_by_default_all_layers_of_all_blocks_are_adapted(model: str) -> None:
    labels = [] if model in ("flux", "mmdit") else ["conditioner=labels"]
    backbone = build_backbone(composed("train", f"model={model}", "model.num_heads=1", *labels), empty=True)
    inside = {n for n, m in backbone.named_modules() if "blocks." in n and isinstance(m, nn.Linear)}
    assert inside == {n for n, _ in backbone.named_modules() if re.fullmatch(TARGETS, n)}


def test_tensors_of_no_layer_are_refused(dit: DiTFactory) -> None:
    with pytest.raises(ValueError, match="not those of adapters of this network"):
        merged(dit(), LoRA(r=2), {"elsewhere.lora_A.default.weight": torch.zeros(2, 2)})
