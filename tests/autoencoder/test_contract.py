"""The contract that ties a checkpoint to an autoencoder."""

import inspect
import json
from dataclasses import replace

import pytest
import torch

from rfdit.autoencoder.contract import Autoencoder, LatentContract
from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.autoencoder.statistics import PerPosition, from_mean_and_std

SD = LatentContract("sd", 4, 8, 0.18215, 0.0)
SD3 = LatentContract("sd3", 16, 8, 1.5305, 0.0609)


def test_normalisation_is_shift_then_scale_and_is_undone() -> None:
    raw = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(SD3.normalise(raw), (raw - 0.0609) * 1.5305)
    torch.testing.assert_close(SD3.denormalise(SD3.normalise(raw)), raw)


def test_survives_a_checkpoint_as_plain_values() -> None:
    assert LatentContract.from_dict(json.loads(json.dumps(SD3.as_dict()))) == SD3


def test_statistics_are_one_for_each_channel_or_position() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    scale, shift = from_mean_and_std(mean, std.view(1, 2, 1, 1))
    contract = LatentContract("two", 2, 1, scale, shift)
    assert (contract.scale, contract.shift) == ((2.0, 0.25), (1.0, -2.0))
    raw = torch.randn(3, 2, 4, 5)
    expected = (raw - mean.view(2, 1, 1)) / std.view(2, 1, 1)
    torch.testing.assert_close(contract.normalise(raw), expected)
    torch.testing.assert_close(contract.denormalise(expected), raw)
    everywhere = torch.rand(2, 4, 5) + 0.5
    scale, shift = from_mean_and_std(everywhere - 1, everywhere[None])
    contract = LatentContract("everywhere", 2, 1, scale, shift)
    torch.testing.assert_close(contract.normalise(raw), (raw - (everywhere - 1)) / everywhere)
    torch.testing.assert_close(contract.denormalise(contract.normalise(raw)), raw)
    with pytest.raises(ValueError, match=r"latents are of 2x5x4 numbers, and the autoencoder's .* 2x4x5"):
        contract.normalise(raw.mT)


def test_statistics_survive_a_checkpoint() -> None:
    everywhere = torch.rand(2, 4, 5)
    for scale in ((2.0, 0.25), PerPosition.of(everywhere)):
        contract = LatentContract("two", 2, 1, scale, 0.0)
        contract.check(LatentContract.from_dict(json.loads(json.dumps(contract.as_dict()))))
    other = PerPosition.of(everywhere + (torch.arange(5) == 3) * 1e-6)
    with pytest.raises(ValueError, match=r"scale [0-9a-f]{12} \(of 2x4x5 numbers\) \(here [0-9a-f]{12} "):
        contract.check(replace(contract, scale=other))


@pytest.mark.parametrize("wrong", [[], ["a"], {"shape": [2]}, None, "1", [[1.0]], True])
def test_other_statistics_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="missing, unknown or of a wrong type: scale"):
        LatentContract.from_dict(SD.as_dict() | {"scale": wrong})


def test_gradients_pass_through_statistics_first_used_without() -> None:
    contract = LatentContract("two", 2, 1, (2.0, 0.125), (1.0, -7.0))
    with torch.inference_mode():
        contract.denormalise(torch.ones(1, 2, 3, 3))
    latents = torch.ones(1, 2, 3, 3, requires_grad=True)
    contract.denormalise(latents).square().sum().backward()
    assert latents.grad is not None


def test_an_equal_contract_passes() -> None:
    SD.check(replace(SD))


def test_a_mismatch_names_every_field_that_differs_and_no_other() -> None:
    with pytest.raises(ValueError, match="trained on latents of autoencoder=sd3") as caught:
        SD.check(SD3)
    sentence = str(caught.value)
    for part in ("channels 16 (here 4)", "scale 1.5305 (here 0.18215)", "shift 0.0609 (here 0.0)"):
        assert part in sentence
    assert "downsampling" not in sentence


@pytest.mark.parametrize("kind", [DiffusersAutoencoder, IdentityAutoencoder])
def test_every_autoencoder_offers_both_halves_of_encoding(kind: type) -> None:
    for name in ("moments", "from_moments", "decode"):
        mine, expected = (inspect.signature(getattr(owner, name)) for owner in (kind, Autoencoder))
        assert list(mine.parameters) == list(expected.parameters)
