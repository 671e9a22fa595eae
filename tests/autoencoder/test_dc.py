"""AutoencoderDC, on a small random autoencoder."""

from pathlib import Path

import torch

from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from tests.support.data.encoding import encode


def test_scales_what_diffusers_gives(tmp_path: Path) -> None:
    from diffusers import AutoencoderDC

    module = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    ).eval()
    module.save_pretrained(tmp_path)
    autoencoder = DiffusersAutoencoder(
        source=str(tmp_path), name="dc", latent_channels=4, downsampling=2, scale=0.5, dtype="fp32"
    )
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        raw = module.encode(images).latent
        decoded = module.decode(raw).sample.clamp(-1, 1)
    latents = encode(autoencoder, images)
    torch.testing.assert_close(latents, raw * 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latents), decoded, rtol=1e-4, atol=1e-4)
