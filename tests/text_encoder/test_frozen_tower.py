"""Frozen towers: captions are encoded once, without gradients, and nothing is in a checkpoint."""

import torch
from torch import Tensor, nn

from rfdit.text_encoder.frozen_tower import FrozenTower

CPU = torch.device("cpu")


class Counting:
    """A tower of one embedding that counts the captions it encodes; the token is the caption's length."""

    def __init__(self, cache_size: int) -> None:
        self.encoded: list[int] = []
        table = nn.Embedding(64, 4)
        self.tower = FrozenTower(table, tokenize=self.tokenize, encode=self.encode, cache_size=cache_size)

    def tokenize(self, captions: list[str]) -> Tensor:
        return torch.tensor([[len(text), 0] for text in captions])

    def encode(self, table: nn.Embedding, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.encoded += ids[:, 0].tolist()
        tokens = table(ids)
        return tokens[:, 0], tokens, ids > 0

    def __call__(self, *captions: str) -> Tensor:
        return self.tower(captions, CPU).pooled


def test_repeated_captions_are_encoded_once_and_keep_their_place() -> None:
    counting = Counting(cache_size=8)
    first = counting("a", "bb", "a", "")
    assert counting.encoded == [1, 2, 0]
    second = counting("bb", "", "ccc", "a")
    assert counting.encoded == [1, 2, 0, 3]
    assert torch.equal(first[[1, 3, 0]], second[[0, 1, 3]])
    assert torch.equal(first[0], first[2])


def test_the_empty_caption_is_never_forgotten() -> None:
    counting = Counting(cache_size=2)
    for n in range(1, 9, 4):
        counting("")
        counting(*("x" * (n + i) for i in range(4)))
    assert counting.encoded.count(0) == 1
    counting("x")
    assert counting.encoded.count(1) == 2  # forgotten: more captions than the cache holds


def test_the_result_can_be_saved_for_backward() -> None:
    network = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = Counting(cache_size=2)("a", "bb")
        loss = network(pooled).square().mean()
    loss.backward()
    assert pooled.dtype == torch.float32
    assert not pooled.requires_grad
    assert network.weight.grad is not None
