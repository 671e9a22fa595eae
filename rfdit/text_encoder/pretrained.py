"""Where a text tower's weights are: a local file or folder, the hub's cache, or the hub."""

from pathlib import Path
from typing import Any

from rfdit.hub import hub_is_reachable


def hub_folder(source: str) -> str:
    """A folder with a Hugging Face text model: `source` itself, or the hub's download of it.

    Only safetensors are taken, never a pickle. What the hub gave once is read from its cache,
    without the network.

    Raises OSError if there are no such weights.
    """
    setting = f"text_encoder.source={source}"
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not _is_complete(folder):
            raise OSError(f"{setting}: this folder lacks config.json or *.safetensors")
        return str(folder)
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise OSError(f"{setting}: there is no such folder, and a hub name has the form owner/name")

    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "model*.safetensors"]
    try:
        cached = snapshot_download(source, allow_patterns=wanted, local_files_only=True)
        if _is_complete(Path(cached)):
            return cached
    except OSError:
        pass  # not in the cache
    reason = "the Hugging Face hub cannot be reached from here"
    if hub_is_reachable():
        try:
            return snapshot_download(source, allow_patterns=wanted)
        except OSError as error:
            reason = str(error).partition("\n")[0]
    raise OSError(
        f"{setting}: no folder of that name, and no download: {reason}. Run `hf download {source} "
        "--local-dir FOLDER` on a machine with network, copy FOLDER here and set text_encoder.source=FOLDER"
    ) from None


def open_clip_weights(model: str, pretrained: str, *, node: str = "text_encoder") -> str:
    """The file of an open_clip model's weights: `pretrained` itself, or the download of that tag.

    node: of the configuration, for messages.
    Raises ValueError for an unknown tag or one trained with another activation than the model's,
    OSError if the tag's weights cannot be downloaded.
    """
    if Path(pretrained).expanduser().is_file():
        return str(Path(pretrained).expanduser())

    from open_clip.factory import get_model_config
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    setting = f"{node}.pretrained={pretrained}"
    tag = get_pretrained_cfg(model, pretrained)
    if not tag:
        known = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"{setting} is no file and no tag of {node}.model={model}; its tags: {known}")
    if bool(tag.get("quick_gelu")) != bool(get_model_config(model).get("quick_gelu")):
        fitting = model.removesuffix("-quickgelu") + ("-quickgelu" if tag.get("quick_gelu") else "")
        raise ValueError(
            f"{setting} was trained with another GELU than {model}'s; use {node}.model={fitting}"
        )
    if cached := _cached(tag):
        return cached
    reason = "the Hugging Face hub cannot be reached from here"
    if hub_is_reachable():
        try:
            return download_pretrained(tag)
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
    origin = tag["hf_hub"].rstrip("/") or tag["url"]
    raise OSError(
        f"{setting} of {model} cannot be downloaded: {reason}. Download {origin} on a machine with network, "
        f"copy its open_clip_model.safetensors here and set {node}.pretrained=FILE"
    ) from None


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _cached(tag: dict[str, Any]) -> str | None:
    """The tag's file in the hub's cache; safetensors if there are both."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    # `owner/name/` means open_clip's usual file names, `owner/name/file` that file.
    repository, _, name = tag["hf_hub"].rpartition("/")
    if not repository:
        return None
    names = [f"{Path(name).stem}.safetensors", name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    found = [try_to_load_from_cache(repository, file) for file in names]
    return next((path for path in found if isinstance(path, str)), None)
