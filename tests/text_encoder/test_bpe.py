"""Captions through a trained embedding table."""

import pytest
import torch

from rfdit.text_encoder.bpe import VOCABULARY, BPEEncoder, token_ids, tokenize

CPU = torch.device("cpu")
START, END = VOCABULARY - 2, VOCABULARY - 1


def test_ids_are_open_clip_s() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    captions = ["", "a small red circle left of a large blue square!", "ünïcode & <b>html</b> " * 9]
    ids, _ = tokenize(captions, 24)
    assert torch.equal(ids, SimpleTokenizer()(captions, context_length=24))


def test_the_mask_is_true_up_to_the_end_token() -> None:
    ids, mask = tokenize(["", "a red star", "! !!"], 8)
    assert mask.sum(dim=1).tolist() == [2, 5, 4]
    for row, real in zip(ids, mask):
        assert row[real][0] == START
        assert row[real][-1] == END
        assert not row[~real].any()


def test_a_long_caption_keeps_its_end_token() -> None:
    row = token_ids("one two three four five six seven", 5)
    assert len(row) == 5
    assert (row[0], row[-1]) == (START, END)
    assert row[1:4] == token_ids("one two three", 5)[1:4]


def test_shapes_and_mean() -> None:
    encoder = BPEEncoder(width=16, length=12)
    condition = encoder(["a red star", ""], device=CPU)
    assert condition.tokens is not None
    assert condition.mask is not None
    assert condition.pooled.shape == (2, encoder.pooled_width)
    assert condition.tokens.shape == (2, encoder.length, encoder.width)
    torch.testing.assert_close(condition.pooled[0], condition.tokens[0, :5].mean(dim=0))
    torch.testing.assert_close(condition.pooled[1], condition.tokens[1, :2].mean(dim=0))


def test_starts_small() -> None:
    encoder = BPEEncoder(width=16, length=12)
    for table in (encoder.token_embedding.weight, encoder.position_embedding):
        assert table.std().item() == pytest.approx(0.02, rel=0.15)


def test_the_same_captions_give_the_same_condition_in_any_batch() -> None:
    encoder = BPEEncoder(width=16, length=12)
    together = encoder(["a red star", "", "a blue ring"], device=CPU)
    alone = encoder(["a blue ring"], device=CPU)
    assert torch.equal(together.pooled[2:], alone.pooled)
    assert not torch.equal(together.pooled[0], together.pooled[2])


def test_the_order_of_words_matters_to_the_tokens() -> None:
    encoder = BPEEncoder(width=16, length=12)
    condition = encoder(["red left of blue", "blue left of red"], device=CPU)
    assert condition.tokens is not None
    assert not torch.allclose(condition.tokens[0], condition.tokens[1])


def test_gradients_reach_the_used_rows_only() -> None:
    encoder = BPEEncoder(width=16, length=12)
    encoder(["a red star"], device=CPU).pooled.square().sum().backward()
    gradient = encoder.token_embedding.weight.grad
    assert gradient is not None
    used = gradient.abs().sum(dim=1).nonzero().flatten().tolist()
    assert used == sorted(set(token_ids("a red star", 12)))
    assert encoder.position_embedding.grad is not None


def test_all_of_it_is_trained_and_saved() -> None:
    assert set(BPEEncoder(width=4, length=4).state_dict()) == {"token_embedding.weight", "position_embedding"}


@pytest.mark.parametrize(("setting", "value"), [("pooled_width", 7), ("length", 1)])
def test_settings_that_cannot_be_are_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"text_encoder\.{setting}={value}"):
        BPEEncoder(**{"width": 4, "length": 4, setting: value})
