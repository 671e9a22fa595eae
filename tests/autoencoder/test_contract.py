"""The contract that ties a checkpoint to an autoencoder."""

import inspect
import json
from dataclasses import replace

import pytest
import torch

from rfdit.autoencoder.contract import Autoencoder, LatentContract
from rfdit.autoencoder.dc import DCAutoencoder
from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.autoencoder.kl import KLAutoencoder
from rfdit.autoencoder.tiny import TinyAutoencoder

SD = LatentContract("sd", 4, 8, 0.18215, 0.0)
SD3 = LatentContract("sd3", 16, 8, 1.5305, 0.0609)


def test_normalisation_is_shift_then_scale_and_is_undone() -> None:
    raw = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(SD3.normalise(raw), (raw - 0.0609) * 1.5305)
    torch.testing.assert_close(SD3.denormalise(SD3.normalise(raw)), raw)


def test_survives_a_checkpoint_as_plain_values() -> None:
    assert LatentContract.from_dict(json.loads(json.dumps(SD3.as_dict()))) == SD3


def test_an_equal_contract_passes() -> None:
    SD.check(replace(SD))


def test_a_mismatch_names_every_field_that_differs_and_no_other() -> None:
    with pytest.raises(ValueError, match="trained on latents of autoencoder=sd3") as caught:
        SD.check(SD3)
    sentence = str(caught.value)
    for part in ("channels 16 (here 4)", "scale 1.5305 (here 0.18215)", "shift 0.0609 (here 0.0)"):
        assert part in sentence
    assert "downsampling" not in sentence


@pytest.mark.parametrize("kind", [KLAutoencoder, TinyAutoencoder, DCAutoencoder, IdentityAutoencoder])
def test_every_autoencoder_offers_both_halves_of_encoding(kind: type) -> None:
    for name in ("moments", "from_moments", "decode"):
        mine, wanted = (inspect.signature(getattr(owner, name)) for owner in (kind, Autoencoder))
        assert list(mine.parameters) == list(wanted.parameters)
