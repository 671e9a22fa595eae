"""The contents of a folder in words, and the setting that reads it, for errors about the wrong kind of data."""

import itertools
import os
from collections import Counter
from pathlib import Path

from rfdit.data.image_files import EXTENSIONS, extension_of, list_files, suffix_in_words
from rfdit.data.skips import listed

LOOKED_AT = 100_000  # files of a folder, beyond which it is not counted on
IMAGES = {f".{extension.decode()}" for extension in EXTENSIONS}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # Hugging Face's imagefolder reads these
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")


def contents_of(folder: str) -> str:
    """`120 .png, 120 .txt: write data=folder`: the files below a folder, and the setting that reads them."""
    paths, suffixes = _look(folder)
    found = listed(suffixes) or "no file"
    if len(paths) == LOOKED_AT:
        found = f"more than {found}"
    hint = _setting(folder, paths, suffixes)
    return f"{found}: {hint}" if hint else found


def option_for(folder: str) -> str | None:
    """The option of `data` that reads a folder; None if none does, or its files do not tell."""
    hint = _setting(folder, *_look(folder)) or ""
    return next((word.removeprefix("data=") for word in hint.split() if word.startswith("data=")), None)


def _look(folder: str) -> tuple[list[bytes], Counter[str]]:
    """(paths of the files below a folder, their counts by suffix), as far as they are counted."""
    paths = list(itertools.islice(list_files(os.fsencode(folder)), LOOKED_AT))
    return paths, Counter(suffix_in_words(extension_of(path)) for path in paths)


def _setting(folder: str, paths: list[bytes], suffixes: Counter[str]) -> str | None:
    """The setting that reads the files of a folder, as a request; None if none does."""
    names = sorted({os.fsdecode(path) for path in paths})
    images = any(suffix in IMAGES for suffix in suffixes)
    metadata = [name for name in names if os.path.basename(name) in METADATA]
    folders = sorted({os.path.dirname(name) for name in metadata})
    if folders and folders != [""]:
        places = ", ".join(str(Path(folder, name)) for name in folders)
        return f"write data=folder and one of the folders with metadata as data.shards ({places})"
    if metadata or (".txt" in suffixes and images):
        return f"write data=folder data.shards={folder}"
    if ".tar" in suffixes:
        other = "latents" if "latents.json" in names else "laion"
        return f"write data={other} data.shards={folder}"
    tables = [name for name in names if name.lower().endswith(TABLES)]
    if images and tables:
        return f"write data=folder data.shards={Path(folder, tables[0])}"
    if images and all(b"/" in path for path in paths if extension_of(path) in EXTENSIONS):
        return f"write data=imagenet data.shards={folder} for one class a folder"
    if ".parquet" in suffixes:
        return f"write data=folder data.shards={folder} if the images are in the tables, or data=laion_urls if URLs are"
    if images:
        return "give each image a caption in NAME.txt beside it, or in a metadata.csv with file_name and text"
    return None
