"""Weights of text towers: from a local file or folder, the cache of the hub, or the hub."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rfdit.pretrained.hub import from_hub, hub_folder, is_hub_name
from rfdit.storage.untrusted import reading


def text_model_folder(source: str, *, subfolders: Sequence[str | None] = (None,)) -> str:
    """A folder with a Hugging Face text model: `source` itself, or its download from the hub.

    subfolders: the folders inside it that are needed, that of the model first; None is the folder itself.

    Only safetensors are read, never a pickle. Earlier downloads are read from the cache of the hub,
    without the network. Raises OSError if there are no such weights.
    """
    setting = f"text_encoder.source={source}"
    folder = Path(source).expanduser()
    inside = dict.fromkeys("" if each is None else f"{each}/" for each in subfolders)
    model = next(iter(inside))
    if folder.is_dir():
        if not _is_complete(folder / model):
            where = f"{model} (text_encoder.subfolder) of this folder" if model else "this folder"
            raise OSError(f"{setting}: {where} lacks config.json or *.safetensors")
        return str(folder)
    if not is_hub_name(source):
        raise OSError(f"{setting}: there is no such folder, and a hub name has the form owner/name")
    return str(
        hub_folder(
            source,
            files=[
                f"{each}{name}"
                for each in inside
                for name in ("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors")
            ],
            is_complete=lambda found: _is_complete(found / model),
            failure=f"{setting}: no folder of that name, and no download",
            remedy=f"Run `hf download {source} --local-dir FOLDER` on a machine with network, copy FOLDER here and "
            "set text_encoder.source=FOLDER",
        )
    )


def open_clip_weights(model: str, pretrained: str, *, node: str = "text_encoder") -> str:
    """The file with the weights of an open_clip model: `pretrained` itself, or the download of that tag.

    node: config node of the model, for messages.
    Raises ValueError for an unknown model or tag or one trained with another activation than the model's,
    OSError if the tag's weights cannot be downloaded.
    """
    check_open_clip_model(model, node=node)
    if Path(pretrained).expanduser().is_file():
        return str(Path(pretrained).expanduser())

    from open_clip.factory import get_model_config
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    setting = f"{node}.pretrained={pretrained}"
    tag = get_pretrained_cfg(model, pretrained)
    if not tag:
        known = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"{setting} is neither a file nor a tag of {node}.model={model}; its tags: {known}")
    if bool(tag.get("quick_gelu")) != bool(get_model_config(model).get("quick_gelu")):
        fitting = model.removesuffix("-quickgelu") + ("-quickgelu" if tag.get("quick_gelu") else "")
        raise ValueError(
            f"{setting} was trained with another GELU than {model}'s; use {node}.model={fitting}"
        )
    origin = tag["hf_hub"].rstrip("/") or tag["url"]
    return from_hub(
        lambda local: _cached(tag) if local else download_pretrained(tag),
        failure=f"{setting} of {model} cannot be downloaded",
        remedy=f"Download {origin} on a machine with network, copy its open_clip_model.safetensors here and set "
        f"{node}.pretrained=FILE",
    )


def check_open_clip_model(model: str, *, node: str = "text_encoder") -> None:
    """Raises ValueError, naming `node`, for a model that open_clip does not have."""
    import open_clip

    names = open_clip.list_models()
    if model not in names:
        close = ", ".join(get_close_matches(model, names)) or "see open_clip.list_models()"
        raise ValueError(f"{node}.model={model} is not a model of open_clip; did you mean: {close}")


def create_open_clip(model: str, file: str | None, *, node: str = "text_encoder", **options: Any) -> Any:
    """An open_clip model with a file of weights; None leaves random ones.

    node: config node of the model, for messages. options: those of `open_clip.create_model`.
    Raises ValueError for weights of another model, and for those that would run pickled code.
    """
    import open_clip

    wrong = f"holds no weights of {model}, or none that load without unpickling code"
    with reading(f"{node}.pretrained={file} {wrong}"):
        return open_clip.create_model(model, pretrained=file, pretrained_text=False, **options)


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _cached(tag: dict[str, Any]) -> str:
    """The file of a tag in the cache of the hub, safetensors if there are two; raises FileNotFoundError."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    # `owner/name/` stands for the usual file names of open_clip, `owner/name/file` for that file.
    repository, _, name = tag["hf_hub"].rpartition("/")
    names = [f"{Path(name).stem}.safetensors", name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for path in (try_to_load_from_cache(repository, file) for file in names if repository):
        if isinstance(path, str):
            return path
    raise FileNotFoundError(tag["hf_hub"])
