"""Adapters of a file that may come from anyone: what they may ask for."""

import pytest
import torch

from rfdit.model.adapters import LoRA, inject, merged
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


def test_tensors_of_no_layer_are_refused(dit: DiTFactory) -> None:
    with pytest.raises(ValueError, match="not those of adapters of this network"):
        merged(dit(), LoRA(r=2), {"elsewhere.lora_A.default.weight": torch.zeros(2, 2)})
