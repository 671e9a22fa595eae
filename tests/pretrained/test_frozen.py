"""The digest of weights: its dependence on values, names and types."""

import torch
from torch import nn

from rfdit.pretrained.frozen import Frozen, weights_digest
from rfdit.protocols import Pretrained


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).bfloat16().float()  # exact in half the bits


def test_the_same_weights_have_the_same_digest() -> None:
    digest = weights_digest(module())
    assert len(digest) == 64
    assert weights_digest(module().to(memory_format=torch.channels_last)) == digest
    assert weights_digest(module().bfloat16()) == digest
    assert weights_digest(module().eval().requires_grad_(False)) == digest


def test_one_bit_one_name_or_one_shape_makes_another() -> None:
    digests = {weights_digest(module())}
    changed = module()
    with torch.no_grad():
        changed[0].bias[2] = torch.nextafter(changed[0].bias[2], torch.tensor(9.0))
    digests.add(weights_digest(changed))
    named = nn.Sequential()
    named.add_module("0", module()[0])
    named.add_module("other", module()[1])
    digests.add(weights_digest(named))
    shaped = module()
    shaped[0].weight = nn.Parameter(shaped[0].weight.detach().reshape(3, 4, 3, 3))
    digests.add(weights_digest(shaped))
    assert len(digests) == 4


def test_the_digest_is_of_the_weights_as_they_were_loaded() -> None:
    exact = nn.Linear(8, 8)
    digest = weights_digest(exact)
    frozen = Frozen(exact)
    frozen.on(torch.device("cpu"), torch.float32)
    assert frozen.weights_digest() == digest
    frozen.on(torch.device("cpu"), torch.bfloat16)
    assert frozen.weights_digest() == digest != weights_digest(exact)


def test_what_is_trained_is_not_pretrained() -> None:
    from rfdit.autoencoder.identity import IdentityAutoencoder
    from rfdit.text_encoder.bpe import BPEEncoder

    assert not isinstance(IdentityAutoencoder(), Pretrained)
    assert not isinstance(BPEEncoder(width=4, length=4), Pretrained)
