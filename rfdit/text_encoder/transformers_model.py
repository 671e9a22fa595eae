"""Text models of transformers and their tokenizers, from safetensors and without code of strangers."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from rfdit.storage.untrusted import reading
from rfdit.text_encoder.pretrained import text_model_folder


def load_model(
    source: str, *, subfolder: str | None, tokenizer_subfolder: str | None, length: int
) -> tuple[nn.Module, Any]:
    """The text part of a model, float32, and its tokenizer.

    source, subfolder, tokenizer_subfolder: as for `TransformersEncoder`. length: tokens that it will receive.
    Raises OSError without weights, ValueError for a model without a text part, for weights that lack some of it, and
    for a length beyond its positions.
    """
    from transformers import AutoConfig, AutoTokenizer

    # Missing weights are an error below; transformers' pages of those that are not needed would bury it.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    setting = f"text_encoder.source={source}"
    folder = Path(text_model_folder(source, subfolders=[subfolder, tokenizer_subfolder]))
    weights, words = folder / (subfolder or ""), folder / (tokenizer_subfolder or "")
    with reading(f"{setting} cannot be read"):
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False, local_files_only=True)
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "encoder"))]
    if all(getattr(part, "vocab_size", None) is None for part in parts):
        raise ValueError(f"{setting} is a {config.model_type}, which has no part that reads text")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise ValueError(f"text_encoder.length={length} must be at most {longest}, the positions of {source}")
    with reading(f"{setting} cannot be read as a {config.model_type}"):
        model, report = _class_of(config).from_pretrained(
            weights,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype="float32",
            output_loading_info=True,
        )
    model = _text_part(model, config)
    own = {name for name, _ in model.named_parameters()}
    missing = [name for name in report["missing_keys"] if any(name.endswith(each) for each in own)]
    if missing:
        raise ValueError(
            f"{setting} lacks {len(missing)} weights of a {config.model_type}, such as {missing[0]}"
        )
    with reading(f"{setting}: its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(words, trust_remote_code=False, local_files_only=True)
    return model, tokenizer


def _class_of(config: Any) -> Any:
    """The class that loads a model: that of its projection, or its text encoder's, or that of the whole model."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    for name in config.architectures or ():
        if name.endswith("TextModelWithProjection") and hasattr(transformers, name):
            return getattr(transformers, name)
    # T5Gemma's encoder alone has another configuration than the whole model, which is loaded then.
    whole = config.is_encoder_decoder and hasattr(config, "encoder")
    if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES and not whole:
        return transformers.AutoModelForTextEncoding
    return transformers.AutoModel


def _text_part(model: Any, config: Any) -> nn.Module:
    """The part that reads text: of an encoder and decoder the encoder, of two towers that of text."""
    if getattr(config, "is_encoder_decoder", False):
        return model.get_encoder()
    if getattr(config, "text_config", None) is not None:
        for name in ("text_model", "language_model"):
            if (part := getattr(model, name, None)) is not None:
                return part
    return model
