"""Where a model may be: a checkpoint of a run, an exported folder, or a hub repository of that form."""

from pathlib import Path

from rfdit.hub import hub_is_reachable
from rfdit.interchange.folder import CONFIG, WEIGHTS, is_folder, read_folder
from rfdit.training.checkpoint import SavedRun, find_checkpoint, read_checkpoint

NEEDED = ("model", "conditioner", "autoencoder", "sampler")  # to build any model again


def open_model(source: str | Path, revision: str | None = None) -> SavedRun:
    """What was saved at a local path, or else in a hub repository.

    Raises ValueError or OSError with one sentence if that is no model, or a damaged one.
    """
    saved = _read(source, revision)
    groups = saved.config if isinstance(saved.config, dict) else {}
    if missing := [group for group in NEEDED if not isinstance(groups.get(group), dict)]:
        raise ValueError(f"{saved.path} is damaged: its configuration has no {', '.join(missing)}")
    return saved


def _read(source: str | Path, revision: str | None) -> SavedRun:
    path = Path(source).expanduser()
    if is_folder(path):
        return read_folder(path)
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{source} is a folder for diffusers; load it with DiffusionPipeline.from_pretrained, or export the "
            "run again with format=safetensors"
        )
    if path.exists():
        return read_checkpoint(find_checkpoint(str(path)))
    name = str(source)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{source} does not exist, and a hub name has the form owner/name")
    return read_folder(download(name, revision))


def download(name: str, revision: str | None) -> Path:
    """A hub repository's description and weights, from the hub's cache if they are there.

    Raises OSError with what to do where the hub is out of reach or has no such model.
    """
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, WEIGHTS]
    try:
        cached = snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True)
        if is_folder(Path(cached)):
            return Path(cached)
    except OSError:
        pass  # not in the cache
    reason = "the Hugging Face hub cannot be reached from here"
    if hub_is_reachable():
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        except OSError as error:
            reason = str(error).partition("\n")[0]
    raise OSError(
        f"{name}: no file or folder of that name, and no download: {reason}. Run `hf download {name} "
        "--local-dir FOLDER` on a machine with network, copy FOLDER here and load that"
    )
