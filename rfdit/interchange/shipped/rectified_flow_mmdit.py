"""diffusers' SD3Transformer2DModel as rfdit trains it. Needs torch and diffusers."""

# mypy: disable-error-code="attr-defined"
# diffusers imports its classes lazily, so that type checkers see empty ones.

from diffusers import SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn


class RectifiedFlowMMDiT(SD3Transformer2DModel):
    """SD3Transformer2DModel with one linear layer for the pooled caption, where SD3 has an MLP."""

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        patch_size: int,
        in_channels: int,
        num_layers: int,
        attention_head_dim: int,
        num_attention_heads: int,
        joint_attention_dim: int,
        caption_projection_dim: int,
        pooled_projection_dim: int,
        out_channels: int,
        pos_embed_max_size: int,
        qk_norm: str | None = None,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=caption_projection_dim,
            pooled_projection_dim=pooled_projection_dim,
            out_channels=out_channels,
            pos_embed_max_size=pos_embed_max_size,
            qk_norm=qk_norm,
        )
        self.time_text_embed.text_embedder = nn.Linear(pooled_projection_dim, self.inner_dim)
