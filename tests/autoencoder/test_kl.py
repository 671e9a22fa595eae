"""AutoencoderKL, on small random autoencoders."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.randomness import SampleGenerator
from tests.support.data.encoding import encode

PRESETS = {
    "sd": (4, 0.18215, 0.0),
    "sdxl": (4, 0.13025, 0.0),
    "sd3": (16, 1.5305, 0.0609),
    "flux": (16, 0.3611, 0.1159),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of weights per preset, downsampling 2."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folders = {}
    for name, (channels, scale, shift) in PRESETS.items():
        module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=channels,
            scaling_factor=scale,
            shift_factor=shift or None,
        )
        folders[name] = tmp_path_factory.mktemp(name)
        module.save_pretrained(folders[name])
    return folders


def build(folders: dict[str, Path], name: str = "sd3", **changes: object) -> DiffusersAutoencoder:
    channels, scale, shift = PRESETS[name]
    settings = {
        "latent_channels": channels,
        "downsampling": 2,
        "scale": scale,
        "shift": shift,
        "dtype": "fp32",
    }
    return DiffusersAutoencoder(source=str(folders[name]), name=name, **{**settings, **changes})  # type: ignore[arg-type]


def posterior(folder: Path, images: torch.Tensor) -> Any:
    from diffusers import AutoencoderKL

    with torch.no_grad():
        return AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).encode(images).latent_dist


@pytest.mark.parametrize("name", PRESETS)
def test_without_a_generator_the_latent_is_the_normalised_mean(folders: dict[str, Path], name: str) -> None:
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    _, scale, shift = PRESETS[name]
    expected = (posterior(folders[name], images).mean - shift) * scale
    latents = encode(build(folders, name), images)
    assert latents.shape == (2, PRESETS[name][0], 8, 12)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_decoding_undoes_the_normalisation(folders: dict[str, Path], name: str) -> None:
    from diffusers import AutoencoderKL

    raw = torch.randn(2, PRESETS[name][0], 8, 8)
    _, scale, shift = PRESETS[name]
    with torch.no_grad():
        module = AutoencoderKL.from_pretrained(folders[name], low_cpu_mem_usage=False)
        expected = module.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(
        build(folders, name).decode((raw - shift) * scale), expected, rtol=1e-4, atol=1e-5
    )


def test_a_generator_draws_from_the_posterior(folders: dict[str, Path]) -> None:
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).expand(512, -1, -1, -1)
    generator = SampleGenerator(seed=0, keys=torch.arange(512))
    raw = build(folders).contract.denormalise(encode(build(folders), images, generator=generator))
    truth = posterior(folders["sd3"], images[:1])
    # Standard error of a mean over 512 draws: a 22nd of the deviation.
    torch.testing.assert_close(raw.mean(0), truth.mean[0], rtol=0, atol=5 * truth.std.max().item() / 22)
    torch.testing.assert_close(raw.std(0).mean(), truth.std.mean(), rtol=0.02, atol=0)


def test_a_sample_s_latent_depends_on_its_key_only(folders: dict[str, Path]) -> None:
    autoencoder = build(folders)
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    keys = torch.tensor([5, 9, 2, 70, 1, 33])

    def latents(rows: slice) -> torch.Tensor:
        return encode(autoencoder, images[rows], generator=SampleGenerator(seed=1, keys=keys[rows]))

    together = latents(slice(0, 6))
    apart = torch.cat([latents(slice(0, 1)), latents(slice(1, 4)), latents(slice(4, 6))])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together, encode(autoencoder, images))


@pytest.mark.parametrize("name", PRESETS)
def test_the_moments_are_the_posterior_s(folders: dict[str, Path], name: str) -> None:
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    moments = build(folders, name).moments(images)
    assert moments.shape == (2, 2 * PRESETS[name][0], 8, 12)
    assert moments.dtype == torch.float32
    expected = posterior(folders[name], images).parameters
    torch.testing.assert_close(moments, expected, rtol=1e-4, atol=1e-5)


def test_moments_kept_in_bf16_lose_nothing_if_they_were_computed_in_it(folders: dict[str, Path]) -> None:
    autoencoder, generator = build(folders, dtype="bf16"), SampleGenerator(seed=0, keys=torch.arange(2))
    moments = autoencoder.moments(torch.rand(2, 3, 16, 16) * 2 - 1)
    kept = moments.bfloat16()
    assert torch.equal(kept.float(), moments)
    latents = autoencoder.from_moments(kept, generator=generator)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, autoencoder.from_moments(moments, generator=generator))


def test_slices_change_nothing(folders: dict[str, Path]) -> None:
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    whole, sliced = build(folders), build(folders, slice_size=2)
    latents = encode(whole, images)
    torch.testing.assert_close(latents, encode(sliced, images))
    torch.testing.assert_close(whole.decode(latents), sliced.decode(latents))


def test_a_network_can_train_on_the_latents_under_autocast(folders: dict[str, Path]) -> None:
    network = nn.Conv2d(16, 16, 1)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    autoencoder = build(folders)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = encode(autoencoder, images)
        loss = network(latents).square().mean()
    loss.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0
    assert latents.dtype == torch.float32
    assert latents.is_contiguous()
    assert not latents.requires_grad
    # dtype=fp32 is fp32 whatever the caller's autocast says.
    assert torch.equal(latents, encode(autoencoder, images))


def test_its_weights_are_in_no_checkpoint_and_copies_share_them(folders: dict[str, Path]) -> None:
    holder = nn.Module()
    holder.autoencoder = build(folders)  # type: ignore[assignment]
    assert holder.state_dict() == {}
    assert list(holder.parameters()) == []
    assert copy.deepcopy(holder).autoencoder._halves.frozen is holder.autoencoder._halves.frozen


@pytest.mark.parametrize(
    ("setting", "value"), [("latent_channels", 4), ("downsampling", 8), ("scale", 0.2), ("shift", 0.1)]
)
def test_settings_that_disagree_with_the_weights_are_named(
    folders: dict[str, Path], setting: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"autoencoder\.{setting}={value} \(the weights have"):
        build(folders, **{setting: value})


def test_an_image_that_does_not_fit_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="downsampling=2 does not divide images of 15x16"):
        encode(build(folders), torch.zeros(1, 3, 15, 16))


@pytest.mark.parametrize(("setting", "value"), [("dtype", "fp16"), ("slice_size", 0)])
def test_a_bad_way_to_run_is_refused(folders: dict[str, Path], setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"autoencoder\.{setting}={value}"):
        build(folders, **{setting: value})


def test_a_config_of_any_depth_is_refused_in_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd"], tmp_path / "sd")
    (tmp_path / "sd/config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"^autoencoder\.source=.*sd cannot be read: .*recursion[^\n]*$"):
        build({"sd": tmp_path / "sd"}, "sd")
