"""Small random text models of transformers, each in a folder with a tokenizer of a few words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "circle",
    "square",
    "of",
    "photo",
    "describe",
    ":",
    "user",
    "system",
    "small",
]
PAD, START, END, UNKNOWN = range(4)
VOCABULARY = 4 + len(WORDS)


def tokenizer(*, start: bool = True, end: bool = True, pad: bool = True, chat: bool = False) -> Any:
    """A tokenizer of whole words, with a start and an end token as asked."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>"]
    words = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate([*names, *WORDS])}, unk_token="<unk>")
    )
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.Fuse()
    single = " ".join(["<s>"] * start + ["$A"] + ["</s>"] * end)
    words.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", START), ("</s>", END)]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="<pad>" if pad else None
    )
    found.model_max_length = 16
    if chat:
        found.chat_template = (
            "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
            "{% if add_generation_prompt %}photo :{% endif %}"
        )
    return found


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return T5EncoderModel(config)


def t5_whole() -> Any:
    """With the decoder, which is left out."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


def t5gemma() -> Any:
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

    half = T5GemmaModuleConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
    )  # fmt: skip
    return T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=half, decoder=half, vocab_size=VOCABULARY))


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
        )
    )  # fmt: skip


def qwen() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip


def clip(width: int = 16, *, projection: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, projection_dim=width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=START, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def siglip() -> Any:
    """Both towers, of which that of text is read."""
    from transformers import SiglipConfig, SiglipModel

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "projection_size": 16,
    }  # fmt: skip
    vision = text | {"image_size": 16, "patch_size": 8}
    del vision["vocab_size"], vision["max_position_embeddings"], vision["projection_size"]
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


def save(folder: Path, make: Callable[[], Any], words: Any) -> Any:
    """Writes a model with random weights that are not small, and its tokenizer; returns the model."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model
