"""Pretrained autoencoders of diffusers, from a local folder or the Hugging Face hub."""

import logging
from pathlib import Path
from typing import Any

from rfdit.autoencoder.kinds import KINDS
from rfdit.pretrained.hub import from_hub, is_hub_name
from rfdit.storage.untrusted import reading


def load_pretrained(source: str, *, subfolder: str | None = None) -> Any:
    """An autoencoder with its weights, read from safetensors only (never a pickle).

    source: a folder with `config.json` and `.safetensors`, or a hub name `owner/name`. Earlier
        downloads are read from the cache of the hub, without the network.
    subfolder: folder of the autoencoder inside the source (`vae` in a whole pipeline).

    Raises OSError if there are no such weights, ValueError if they are not one of `KINDS`.
    """
    # Unexpected weights are an error below; diffusers' page-long warnings of them would bury it.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    setting = f"autoencoder.source={source}"
    folder = Path(source).expanduser()
    if folder.is_dir():
        try:
            return _load(str(folder), subfolder, local=True)
        except OSError:
            needed = "config.json and .safetensors weights of a diffusers autoencoder"
            where = f"{subfolder}/ (autoencoder.subfolder) of this folder" if subfolder else "this folder"
            raise OSError(f"{setting}: there are no {needed} in {where}") from None
    if not is_hub_name(source) or "/" not in source:
        raise OSError(f"{setting}: there is no such folder, and a hub name has the form owner/name")
    include = f" --include '{subfolder}/*'" if subfolder else ""
    return from_hub(
        lambda local: _load(source, subfolder, local=local),
        failure=f"{setting}: no folder of that name, and no download",
        remedy=f"Run `hf download {source}{include} --local-dir FOLDER` on a machine with network, copy FOLDER here "
        "and set autoencoder.source=FOLDER",
    )


def _load(source: str, subfolder: str | None, *, local: bool) -> Any:
    import diffusers

    setting, where = f"autoencoder.source={source}", {"subfolder": subfolder, "local_files_only": local}
    with reading(f"{setting} cannot be read"):
        name = diffusers.AutoencoderKL.load_config(source, **where).get("_class_name")
    if name not in KINDS:
        raise ValueError(f"{setting} is of the class {name}; use one of {', '.join(KINDS)}")
    with reading(f"{setting} cannot be read as an {name}"):
        module, report = getattr(diffusers, name).from_pretrained(
            source,
            use_safetensors=True,
            low_cpu_mem_usage=False,  # needs another package
            output_loading_info=True,
            **where,
        )
    wrong = len(report["missing_keys"]) + len(report["unexpected_keys"]) + len(report["mismatched_keys"])
    if wrong:
        raise ValueError(f"{setting} is not an {name}: {wrong} of its weights are missing or too many")
    return module
