"""The ends of captions that text encoders cut off, and the sentence about them."""

from pathlib import Path

import pytest
import torch

from rfdit.conditioning import LabelConditioner, TextConditioner, truncation
from rfdit.text_encoder.bpe import BPEEncoder
from rfdit.text_encoder.openclip_hf import OpenCLIPHFEncoder
from rfdit.text_encoder.unread import unread_end

WORDS = "one two three four five six seven eight"


@pytest.mark.parametrize(
    ("length", "end"), [(10, ""), (9, "eight"), (5, "four five six seven eight"), (2, WORDS)]
)
def test_the_end_behind_the_last_token(length: int, end: str) -> None:
    encoder = BPEEncoder(width=4, length=length)
    assert encoder.unread_end(WORDS) == end
    whole, read = (
        encoder([caption], device=torch.device("cpu")).pooled
        for caption in (WORDS, WORDS.removesuffix(end).strip())
    )
    assert torch.equal(whole, read)


def test_the_end_with_a_tokenizer_of_hugging_face(assets: Path) -> None:
    source = str(assets / "text_encoder/minilm")
    encoder = OpenCLIPHFEncoder(source=source, width=384, pooled_width=384, length=8)
    assert encoder.unread_end(WORDS) == "seven eight"
    assert encoder.unread_end("one two three four five six") == ""


def test_the_end_with_clip_s_tokenizer() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    assert unread_end(SimpleTokenizer(), "word " * 75 + "and a cat", 77) == "and a cat"


def test_the_sentence_names_the_words() -> None:
    conditioner = TextConditioner(encoder=BPEEncoder(width=4, length=5))
    assert truncation(conditioner, ["one two", None, ""]) is None
    assert truncation(conditioner, ["one two", f"{WORDS} dog", f"{WORDS} dog"]) == (
        "the text encoder reads 5 tokens (text_encoder.length); these ends are cut off: "
        '"... four five six seven eight dog"'
    )
    many = truncation(conditioner, [f"a b c {i}" for i in range(5)])
    assert many is not None
    assert many.endswith('"... 0", "... 1", "... 2" and those of 2 more captions')
    long = truncation(conditioner, ["word " * 200])
    assert long is not None
    assert long.endswith(f'"... {("word " * 24).strip()} ..."')
    assert truncation(LabelConditioner(num_classes=3, width=4), [1, 2]) is None
