"""Captioned images in each of the forms that data=folder reads."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

FORMS = ("texts", "csv", "jsonl", "table", "parquet")
Captions = Sequence[Sequence[str]]


def numbered_png(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """An image of (height, width) whose red is its number."""
    pixels = np.full((*size, 3), 100, dtype=np.uint8)
    pixels[..., 0] = number
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    return png.getvalue()


def write_images(folder: Path, count: int) -> list[str]:
    """Writes 00.png, 01.png, ...; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{n:02d}.png" for n in range(count)]
    for n, name in enumerate(names):
        (folder / name).write_bytes(numbered_png(n))
    return names


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as the suffix says."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_form(form: str, folder: Path, captions: Sequence[str]) -> Path:
    """Writes one image for each caption in one of `FORMS`; returns what `data.shards` names."""
    if form == "parquet":
        folder.mkdir(parents=True, exist_ok=True)
        images = [{"bytes": numbered_png(n), "path": f"{n:02d}.png"} for n in range(len(captions))]
        rows = [{"image": image, "text": text} for image, text in zip(images, captions, strict=True)]
        return write_table(folder / "train-00000.parquet", rows).parent
    names = write_images(folder, len(captions))
    if form == "texts":
        for name, text in zip(names, captions, strict=True):
            (folder / name).with_suffix(".txt").write_text(text)
        return folder
    rows = [{"file_name": name, "text": text} for name, text in zip(names, captions, strict=True)]
    if form == "table":
        return write_table(
            folder.parent / "captions.tsv",
            [row | {"file_name": f"{folder.name}/{row['file_name']}"} for row in rows],
        )
    return write_table(folder / f"metadata.{form}", rows).parent
