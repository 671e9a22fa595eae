"""diffusers' DiTTransformer2DModel as rfdit trains it. Needs torch and diffusers."""

# mypy: disable-error-code="attr-defined"
# diffusers imports its classes lazily, so that type checkers see empty ones.

from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn


class RectifiedFlowDiT(DiTTransformer2DModel):
    """DiTTransformer2DModel with three differences.

    The time frequencies are 10000^(-i/128), those of the DiT paper's code, and not 10000^(-i/127).
    The table of positions is a part of the weights. Queries and keys may be normalised (qk_norm).
    Timesteps are 1000 t, with t = 0 at data and t = 1 at noise; time_scale is what t is multiplied by
    before its sinusoid.
    """

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int,
        sample_size: int,
        patch_size: int,
        num_embeds_ada_norm: int,
        qk_norm: bool = False,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=in_channels,
            num_layers=num_layers,
            sample_size=sample_size,
            patch_size=patch_size,
            num_embeds_ada_norm=num_embeds_ada_norm,
            norm_eps=1e-6,
        )
        self.pos_embed.register_buffer("pos_embed", self.pos_embed.pos_embed, persistent=True)
        for block in self.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
            block.norm1.emb.time_proj.scale = time_scale / 1000
            if qk_norm:
                block.attn1.norm_q = nn.RMSNorm(attention_head_dim, eps=1e-6)
                block.attn1.norm_k = nn.RMSNorm(attention_head_dim, eps=1e-6)
