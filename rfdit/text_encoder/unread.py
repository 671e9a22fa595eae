"""The end of a caption behind the last token that a text encoder reads, and the share of captions that have one."""

from collections.abc import Sequence
from typing import Any

from rfdit.protocols import TextEncoder, Truncates


class TruncationCount:
    """Counts the captions that an encoder cuts off, among the first that it is given.

    most: number of captions that are counted.
    """

    def __init__(self, encoder: TextEncoder | None, *, most: int) -> None:
        self.encoder = encoder if isinstance(encoder, Truncates) else None
        self.most = most
        self.read = self.cut = 0

    @property
    def done(self) -> bool:
        """True if all were counted, or the encoder does not say what it cuts off."""
        return self.encoder is None or self.read >= self.most

    def add(self, captions: Sequence[str]) -> None:
        """Count captions."""
        if self.encoder is not None and not self.done:
            self.read += len(captions)
            self.cut += sum(bool(self.encoder.unread_end(caption)) for caption in captions)

    @property
    def share(self) -> float:
        """The share of captions that are cut off."""
        return self.cut / max(self.read, 1)

    def sentence(self) -> str | None:
        """The share of captions that are cut off; None if none are."""
        if not self.cut or self.encoder is None:
            return None
        return (
            f"{self.share:.1%} of the first {self.read:,} captions are longer than "
            f"text_encoder.length={self.encoder.length} tokens, and their ends are cut off"
        )


def unread_end(tokenizer: Any, caption: str, length: int) -> str:
    """The end of a caption that is cut off, in the tokenizer's spelling; empty if the caption is read whole.

    tokenizer: one of open_clip. length: tokens per caption, with those for its start and end.
    """
    from open_clip.tokenizer import basic_clean, canonicalize_text

    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:  # CLIP's byte-pair encoding
        return tokenizer.decode(tokenizer.encode(caption)[length - 2 :]).strip()
    clean = getattr(tokenizer, "clean_fn", None)  # SigLIP's has its own instead
    text = canonicalize_text(basic_clean(caption)) if clean is None else clean(caption)
    ids = inner(text, add_special_tokens=False, verbose=False).input_ids
    return inner.decode(ids[length - inner.num_special_tokens_to_add() :]).strip()
