"""Captions through a table of CLIP's tokens, trained with the model. Needs torch and diffusers."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class CaptionEmbedding(ModelMixin, ConfigMixin):
    """Token ids (b, l) to tokens (b, l, width): each embedded, with its position; l is at most `length`."""

    @register_to_config
    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(torch.zeros(length, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
