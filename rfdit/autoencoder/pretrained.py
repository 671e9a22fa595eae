"""Pretrained autoencoders, from a local folder or the Hugging Face hub."""

import logging
from pathlib import Path
from typing import Any

from rfdit.autoencoder.contract import LatentContract
from rfdit.hub import hub_is_reachable


def load_pretrained(kind: type[Any], source: str, *, subfolder: str | None = None) -> Any:
    """A diffusers autoencoder with its weights, read from safetensors only (never a pickle).

    kind: the diffusers class.
    source: a folder with `config.json` and `.safetensors`, or a hub name `owner/name`. What the hub
        gave once is read from its cache, without the network.
    subfolder: where the autoencoder lies inside the source (`vae` in a whole pipeline).

    Raises OSError if there are no such weights, ValueError if they belong to another class.
    """
    # Unexpected weights are an error below; diffusers' page-long warnings of them would bury it.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    setting = f"autoencoder.source={source}"
    folder = Path(source).expanduser()
    if folder.is_dir():
        try:
            return _load(kind, str(folder), subfolder, local=True)
        except OSError:
            wanted = "config.json and .safetensors weights of a diffusers autoencoder"
            where = f"{subfolder}/ (autoencoder.subfolder) of this folder" if subfolder else "this folder"
            raise OSError(f"{setting}: there are no {wanted} in {where}") from None
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise OSError(f"{setting}: there is no such folder, and a hub name has the form owner/name")
    try:
        return _load(kind, source, subfolder, local=True)
    except OSError:
        return _download(kind, source, subfolder)


def _download(kind: type[Any], source: str, subfolder: str | None) -> Any:
    reason = "the Hugging Face hub cannot be reached from here"
    if hub_is_reachable():
        try:
            return _load(kind, source, subfolder, local=False)
        except OSError as error:
            reason = str(error).partition("\n")[0]
    include = f" --include '{subfolder}/*'" if subfolder else ""
    raise OSError(
        f"autoencoder.source={source}: no folder of that name, and no download: {reason}. Run "
        f"`hf download {source}{include} --local-dir FOLDER` on a machine with network, copy FOLDER here "
        "and set autoencoder.source=FOLDER"
    ) from None


def _load(kind: type[Any], source: str, subfolder: str | None, *, local: bool) -> Any:
    setting = f"autoencoder.source={source}"
    try:
        module, report = kind.from_pretrained(
            source,
            subfolder=subfolder,
            use_safetensors=True,
            local_files_only=local,
            low_cpu_mem_usage=False,  # needs another package
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{setting} cannot be read as an {kind.__name__}: {reason}") from None
    wrong = len(report["missing_keys"]) + len(report["unexpected_keys"]) + len(report["mismatched_keys"])
    if wrong:
        raise ValueError(f"{setting} is no {kind.__name__}: {wrong} of its weights are missing or too many")
    return module


def check_declared(source: str, *, declared: LatentContract, found: LatentContract) -> None:
    """Holds the settings against what the weights' own config says.

    Raises ValueError, naming every setting that disagrees.
    """
    differences = declared.differences(found)
    if differences:
        settings = {"channels": "latent_channels"}  # where setting and field have different names
        listed = ", ".join(
            f"autoencoder.{settings.get(name, name)}={mine} (the weights have {theirs})"
            for name, (mine, theirs) in differences.items()
        )
        raise ValueError(f"the weights of autoencoder.source={source} disagree with {listed}")
