"""Models by name: a checkpoint of a run, an exported folder, or a hub repository of that form.

Adapters are opened likewise: those of a run, or a folder for peft that `rfdit export` wrote.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rfdit.checkpoint.resume import find_checkpoint, newest_run
from rfdit.checkpoint.saved_run import SavedRun, read_checkpoint
from rfdit.interchange.adapted import on_base
from rfdit.interchange.adapter_folder import is_peft_folder, read_peft_folder
from rfdit.interchange.folder import CONFIG, WEIGHTS, is_complete, is_folder, read_folder
from rfdit.pretrained.hub import hub_folder, is_hub_name


def open_model(
    source: str | Path | None,
    revision: str | None = None,
    *,
    step: int | None = None,
    base: str | None = None,
    packages: Collection[str] = (),
) -> SavedRun:
    """The model at a local path, or else in a hub repository; adapters are merged into their base.

    step: that of the checkpoint to take from a run folder; None takes the last.
    base: where the base of adapters is, if it has moved. packages: those of the user's own whose classes the network
        that they change may have.
    Raises ValueError or OSError with one sentence if there is none, or a damaged one, or `source`, which
    is the commands' `ckpt`, is None.
    """
    opened = partial(open_model, packages=packages)
    whole = on_base(_read(source, revision, step), opened, base=base, packages=packages)
    whole.check_model()
    return whole


def open_named(
    group: str, ckpt: str, *, step: int | None, base: str | None, packages: Collection[str]
) -> SavedRun:
    """`open_model` for a group of settings; messages name `GROUP.ckpt`, `GROUP.step` and `GROUP.base`."""
    source = Path(ckpt) if Path(ckpt).expanduser().exists() else ckpt
    try:
        return open_model(source, step=step, base=base, packages=packages)
    except (ValueError, OSError) as error:
        text = str(error)
        named = text.startswith(("ckpt=", "step=", "base="))
        raise type(error)(f"{group}.{text}" if named else f"{group}.ckpt={ckpt}: {text}") from None


def open_adapters(source: str | Path | None) -> SavedRun:
    """The run at a path as it is saved: adapters alone, if it has trained those; errors as of `open_model`."""
    saved = _read(source, None, None)
    if saved.base is None:
        saved.check_model()
    return saved


def with_sources(saved: SavedRun, **sources: str | None) -> SavedRun:
    """The same model, with the weights of its autoencoder or text_encoder at other paths, if given.

    Raises ValueError for an encoder that the model does not have.
    """
    config = dict(saved.config)
    for encoder, source in sources.items():
        if source is not None:
            if not isinstance(config.get(encoder), dict):
                raise ValueError(f"{encoder}.source={source}: {saved.path} has no {encoder}")
            config[encoder] = _moved(config[encoder], source)
    moved, was = config.get("text_encoder"), saved.config.get("text_encoder")
    # The conditioner's settings contain a copy of the text encoder's.
    config["conditioner"] = {k: moved if node == was else node for k, node in config["conditioner"].items()}
    return replace(saved, config=config)


def _moved(node: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of an encoder with its weights elsewhere; of several encoders, all that have a source."""
    if not isinstance(node.get("encoders"), dict):
        return node | {"source": source}
    moved = {
        name: part | {"source": source} if isinstance(part, dict) and "source" in part else part
        for name, part in node["encoders"].items()
    }
    return node | {"encoders": moved}


def _read(source: str | Path | None, revision: str | None, step: int | None) -> SavedRun:
    if source is None:
        newest = newest_run(Path("outputs"))
        hint = f"; the newest run here is ckpt={newest}" if newest else ""
        raise ValueError(f"ckpt is not set; give ckpt=RUN_FOLDER or a .ckpt file{hint}")
    path = Path(source).expanduser()
    if step is not None:
        return read_checkpoint(find_checkpoint(str(path), step))
    if is_folder(path):
        return read_folder(path)
    if is_peft_folder(path):
        return read_peft_folder(path)
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{source} is a folder for diffusers; load it with DiffusionPipeline.from_pretrained, or export the "
            "run again with format=safetensors"
        )
    if path.exists():
        return read_checkpoint(find_checkpoint(str(path)))
    name = str(source)
    if not is_hub_name(name) or "/" not in name:
        raise ValueError(f"{source} does not exist, and a hub name has the form owner/name")
    return read_folder(download(name, revision))


def download(name: str, revision: str | None) -> Path:
    """A hub repository's description and weights, from the hub's cache if they are there.

    Raises OSError that says what to do if the hub cannot be reached or has no such model.
    """
    return hub_folder(
        name,
        files=[CONFIG, WEIGHTS],
        is_complete=is_complete,
        failure=f"{name}: no file or folder of that name, and no download",
        remedy=f"Run `hf download {name} --local-dir FOLDER` on a machine with network, copy FOLDER here and load that",
        revision=revision,
    )
