"""Prompts of captions for a language model: template, chat, tokens and their mask."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

PLACE = "{}"  # of the caption in a template


class Prompts:
    """Turns captions into token ids of one length, padded on the right.

    tokenizer: one of transformers. length: tokens, those of template and chat included.
    mask: tell padding from tokens; else all count as tokens.
    template, chat, system: as for `TransformersEncoder`.

    Raises ValueError for a template without the caption's place, and for chat without a chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        length: int,
        mask: bool,
        template: str | None,
        chat: bool,
        system: str | None,
    ) -> None:
        if template is not None and template.count(PLACE) != 1:
            raise ValueError(f"text_encoder.template={template!r} must have {PLACE} once, for the caption")
        if system is not None and not chat:
            raise ValueError("text_encoder.system has no effect without text_encoder.chat=true")
        if chat and not tokenizer.chat_template:
            raise ValueError(
                "text_encoder.chat=true: this tokenizer has no chat template; use text_encoder.template"
            )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise ValueError("text_encoder.source: this tokenizer has neither a padding nor an end token")
            tokenizer.pad_token_id = tokenizer.eos_token_id  # never read under a mask
        tokenizer.padding_side = "right"
        self._tokenizer, self._length, self._mask = tokenizer, length, mask
        self._template, self._chat, self._system = template, chat, system

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "b 2 l"]:
        """b captions -> token ids, and 1 where a token is not padding."""
        found = self._tokenizer(
            [self._text(caption) for caption in captions],
            padding="max_length",
            max_length=self._length,
            truncation=True,
            add_special_tokens=not self._chat,  # the chat template has them
            return_tensors="pt",
        )
        mask = found.attention_mask if self._mask else torch.ones_like(found.input_ids)
        if self._mask:  # no model attends to nothing
            mask = mask | (torch.arange(self._length) == 0)
        return torch.stack([found.input_ids, mask.to(found.input_ids.dtype)], dim=1)

    def unread_end(self, caption: str) -> str:
        """The end of a caption that is cut off, in the tokenizer's spelling; empty if the caption is read whole."""
        whole = self._ids(self._text(caption), special=not self._chat)
        over = len(whole) - self._length
        if over <= 0:
            return ""
        own = self._ids(caption, special=False)
        # What follows the caption in the prompt is cut off first; the tokenizer's end token is kept.
        cut = over - self._behind()
        return self._tokenizer.decode(own[len(own) - cut :]).strip() if cut > 0 else ""

    def _behind(self) -> int:
        """Tokens behind the caption in template and chat."""
        _, _, after = self._text("\0").partition("\0")
        return len(self._ids(after, special=False)) if after else 0

    def _text(self, caption: str) -> str:
        text = caption if self._template is None else self._template.replace(PLACE, caption)
        if not self._chat:
            return text
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return self._tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)
