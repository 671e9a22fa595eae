"""Downloads from the Hugging Face hub, through its cache."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def is_hub_name(source: str) -> bool:
    """True for `owner/name`, or the bare name of an old repository, unless there is a folder of that name."""
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    return not is_path and not Path(source).is_dir()


def from_hub(fetch: Callable[[bool], T], *, failure: str, remedy: str) -> T:
    """`fetch(True)`, which reads the cache alone, or else `fetch(False)`, which may download.

    So what was downloaded once needs no network. `fetch` raises OSError where it does not succeed.
    failure, remedy: the beginning and the end of the OSError that is raised if neither does.
    """
    try:
        return fetch(True)
    except OSError:
        pass  # not in the cache
    reason = "the Hugging Face hub cannot be reached from here"
    if hub_is_reachable():
        try:
            return fetch(False)
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
    raise OSError(f"{failure}: {reason}. {remedy}") from None


def hub_folder(
    name: str,
    *,
    files: Sequence[str],
    is_complete: Callable[[Path], bool],
    failure: str,
    remedy: str,
    revision: str | None = None,
) -> Path:
    """The folder of a repository's files in the cache; see `from_hub`.

    files: patterns of the files to download. is_complete: tells a cached folder with all that is needed.
    """
    from huggingface_hub import snapshot_download

    def fetch(local: bool) -> Path:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=local)
        )
        if local and not is_complete(folder):
            raise FileNotFoundError(folder)
        return folder

    return from_hub(fetch, failure=failure, remedy=remedy)


def hub_is_reachable() -> bool:
    """Sends one request with a short timeout; the client of the hub retries for half a minute before it gives up."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # from requests or httpx, whichever this version of huggingface_hub uses
        return False
    return True
