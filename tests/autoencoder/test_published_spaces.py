"""The spaces of VA-VAE, Flux.2, Qwen-Image, Wan and RAE, on small random autoencoders of their classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from rfdit.autoencoder.contract import LatentContract
from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.randomness import SampleGenerator
from tests.support.data.encoding import encode

CONF = Path(__file__).parents[2] / "conf/autoencoder"
SIDE = 32


def vavae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=(*["DownEncoderBlock2D"] * 4, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 4),
        block_out_channels=(8,) * 5,
        norm_num_groups=4,
        latent_channels=32,
        latents_mean=torch.linspace(-1, 1, 32).tolist(),
        latents_std=torch.linspace(0.5, 4, 32).tolist(),
    )


def flux2() -> Any:
    from diffusers import AutoencoderKLFlux2

    module = AutoencoderKLFlux2(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=32)
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 4)
    return module


def qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def wan() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def wan22() -> Any:
    """Wan 2.2, which takes pixels in patches of 2 x 2."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        z_dim=2,
        latents_mean=[0.5, -0.5],
        latents_std=[2.0, 0.25],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def rae(scaling_factor: float = 1.0) -> Any:
    from diffusers import AutoencoderRAE

    return AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_num_hidden_layers=1,
        encoder_input_size=28,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        latents_mean=torch.randn(64, 2, 2),
        latents_std=torch.rand(64, 2, 2) + 0.5,
        scaling_factor=scaling_factor,
    )


# Each class's own way from images to the latents that its pipeline's transformer takes, and back.
def kl_forth(module: Any, images: Tensor) -> Tensor:
    raw = module.encode(images).latent_dist.mode()
    return (raw - column(module.config.latents_mean)) / column(module.config.latents_std)


def kl_back(module: Any, latents: Tensor) -> Tensor:
    raw = latents * column(module.config.latents_std) + column(module.config.latents_mean)
    return module.decode(raw).sample


def flux2_forth(module: Any, images: Tensor) -> Tensor:
    from diffusers import Flux2Pipeline

    raw = Flux2Pipeline._patchify_latents(module.encode(images).latent_dist.mode())
    mean, variance = module.bn.running_mean.view(1, -1, 1, 1), module.bn.running_var.view(1, -1, 1, 1)
    return (raw - mean) / torch.sqrt(variance + module.config.batch_norm_eps)


def flux2_back(module: Any, latents: Tensor) -> Tensor:
    from diffusers import Flux2Pipeline

    mean, variance = module.bn.running_mean.view(1, -1, 1, 1), module.bn.running_var.view(1, -1, 1, 1)
    raw = latents * torch.sqrt(variance + module.config.batch_norm_eps) + mean
    return module.decode(Flux2Pipeline._unpatchify_latents(raw)).sample


def clip_forth(module: Any, images: Tensor) -> Tensor:
    raw = module.encode(images.unsqueeze(2)).latent_dist.mode()
    mean, std = (column(values, 5) for values in (module.config.latents_mean, module.config.latents_std))
    return ((raw - mean) / std).squeeze(2)


def clip_back(module: Any, latents: Tensor) -> Tensor:
    mean, std = (column(values, 5) for values in (module.config.latents_mean, module.config.latents_std))
    return module.decode(latents.unsqueeze(2) * std + mean).sample.squeeze(2)


def rae_forth(module: Any, images: Tensor) -> Tensor:
    return module.encode((images + 1) / 2).latent


def rae_back(module: Any, latents: Tensor) -> Tensor:
    return module.decode(latents).sample * 2 - 1


def column(values: Any, ndim: int = 4) -> Tensor:
    return torch.tensor(values).view(1, -1, *[1] * (ndim - 2))


Way = Callable[[Any, Tensor], Tensor]
SPACES: dict[str, tuple[Callable[[], Any], Way, Way, dict[str, Any]]] = {
    "vavae": (vavae, kl_forth, kl_back, {}),
    "flux2": (flux2, flux2_forth, flux2_back, {}),
    "qwen_image": (qwen_image, clip_forth, clip_back, {}),
    "wan": (wan, clip_forth, clip_back, {}),
    "wan22": (
        wan22,
        clip_forth,
        clip_back,
        {"latent_channels": 2, "downsampling": 16, "mean": [0.5, -0.5], "std": [2.0, 0.25]},
    ),
    "rae": (rae, rae_forth, rae_back, {"latent_channels": 64}),
    "rae_scaled": (lambda: rae(0.5), rae_forth, rae_back, {"latent_channels": 64}),
}


@pytest.fixture(scope="module", params=SPACES)
def space(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Name, folder, and module of diffusers."""
    torch.manual_seed(0)
    module = SPACES[request.param][0]().eval()
    for parameter in module.parameters():  # a fresh decoder hardly depends on its input
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp(request.param)
    module.save_pretrained(folder)
    return request.param, folder, module


def build(name: str, folder: Path, **changes: Any) -> DiffusersAutoencoder:
    """The autoencoder of the option that a space is tested for, with small weights."""
    node = OmegaConf.to_object(OmegaConf.load(CONF / f"{name.split('_s')[0].removesuffix('22')}.yaml"))
    assert isinstance(node, dict)
    node |= {"source": str(folder), "subfolder": None, "dtype": "fp32"} | SPACES[name][3] | changes
    del node["_target_"]
    return DiffusersAutoencoder(**node)


def test_latents_and_images_are_those_of_diffusers(space: tuple[str, Path, Any]) -> None:
    name, folder, module = space
    _, forth, back, _ = SPACES[name]
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        latents = forth(module, images)
        decoded = back(module, latents).clamp(-1, 1)
    autoencoder = build(name, folder)
    mine = encode(autoencoder, images)
    down = autoencoder.downsampling
    assert mine.shape == latents.shape == (2, autoencoder.latent_channels, SIDE // down, SIDE // down)
    torch.testing.assert_close(mine, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latents), decoded, rtol=1e-4, atol=1e-5)
    assert decoded.std() > 0.01


def test_the_contract_is_kept_by_a_checkpoint_and_compared(space: tuple[str, Path, Any]) -> None:
    name, folder, _ = space
    contract = build(name, folder).contract
    kept = LatentContract.from_dict(contract.as_dict())
    contract.check(kept)
    assert len(str(contract.as_dict())) < 8000  # numbers for each position are kept as a digest
    other = LatentContract.from_dict(contract.as_dict() | {"shift": 0.125})
    with pytest.raises(ValueError, match=r"with shift 0\.125 \(here "):
        contract.check(other)


def test_posteriors_are_drawn_per_channel(space: tuple[str, Path, Any]) -> None:
    name, folder, _ = space
    autoencoder = build(name, folder)
    moments = autoencoder.moments(torch.rand(1, 3, SIDE, SIDE) * 2 - 1)
    generator = SampleGenerator(seed=0, keys=torch.arange(1))
    drawn = autoencoder.from_moments(moments, generator=generator)
    if moments.shape[1] == autoencoder.latent_channels:  # deterministic
        assert torch.equal(drawn, autoencoder.from_moments(moments))
        return
    mean, log_variance = moments.chunk(2, dim=1)
    noise = generator.normal(*mean.shape[1:])
    expected = autoencoder.contract.normalise(mean + (log_variance / 2).exp() * noise)
    torch.testing.assert_close(drawn, expected)


def test_slices_and_bf16(space: tuple[str, Path, Any]) -> None:
    name, folder, _ = space
    images = torch.rand(3, 3, SIDE, SIDE) * 2 - 1
    whole = build(name, folder).moments(images)
    torch.testing.assert_close(build(name, folder, slice_size=2).moments(images), whole, rtol=1e-4, atol=1e-5)
    half = build(name, folder, dtype="bf16")
    assert (half.moments(images) - whole).abs().max() < 0.1 * whole.abs().max()
    assert half.decode(encode(half, images)).isfinite().all()


@pytest.mark.parametrize("name", ["qwen_image", "wan"])
def test_the_statistics_of_the_options_are_those_of_diffusers(name: str) -> None:
    module, settings = SPACES[name][0](), OmegaConf.load(CONF / f"{name}.yaml")
    assert list(settings.mean) == list(module.config.latents_mean)
    assert list(settings.std) == list(module.config.latents_std)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "wan22",
            {"std": [2.0, 0.5]},
            r"autoencoder\.std=0\.5 in channel 1 \(the weights have 0\.25 in channel 1\)",
        ),
        ("wan22", {"mean": [0.5]}, r"autoencoder\.mean has 1 numbers for autoencoder\.latent_channels=2"),
        ("wan22", {"mean": None}, r"autoencoder\.mean and autoencoder\.std come together"),
        ("wan22", {"scale": 0.5}, r"give one of these$"),
        ("wan22", {"mean": None, "std": None}, r"have no scale and shift, but a mean and std"),
        (
            "flux2",
            {"statistics": "none"},
            r"autoencoder\.statistics=none is unknown; use settings or weights",
        ),
        (
            "flux2",
            {"latent_channels": 32},
            r"autoencoder\.latent_channels=32 \(the weights have 128\)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    SPACES[name][0]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(name, tmp_path, **changes)


def test_weights_without_statistics_are_told(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(latent_channels=32, block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"autoencoder\.statistics=weights: the weights of .* have no mean"):
        build("vavae", tmp_path)


def test_rae_takes_images_of_its_own_size_alone(tmp_path: Path) -> None:
    rae().save_pretrained(tmp_path)
    autoencoder = build("rae", tmp_path)
    with pytest.raises(
        ValueError, match=r"data\.resolution: this autoencoder takes images of 32x32 pixels, not 48x48"
    ):
        encode(autoencoder, torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match=r"the latents are of 64x3x3 numbers, and .* are for 64x2x2"):
        autoencoder.decode(torch.zeros(1, 64, 3, 3))
