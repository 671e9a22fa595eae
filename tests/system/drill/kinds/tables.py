"""Text and tables of others: prompts, class names, and tables of URLs with the caches that are made of them."""

import json
from pathlib import Path
from typing import Any

from rfdit.data.class_names import read_class_names
from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.urls.dead_links import LinkStates
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.source import UrlTables
from rfdit.generate.request import read_prompts
from rfdit.storage.text import read_text, text_lines
from tests.system.drill.kind import Kind, Samples, digest
from tests.system.drill.kinds.data import forge_json

ROWS = [{"URL": f"http://x/{n}", "TEXT": f"number {n}", "WIDTH": 8 + n, "HEIGHT": 8} for n in range(40)]


def make_text() -> None:
    Path("prompts.txt").write_text("a red circle\na blue star\n- é, [1.10]\n" * 5)
    Path("names.json").write_text(json.dumps([f"class {n}" for n in range(9)]))
    Path("names.txt").write_text("".join(f"n{n:08d} class {n}, also {n}\n" for n in range(9)))


def make_tables() -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), "rows.parquet", row_group_size=16)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def read_table(name: str) -> Samples:
    """The rows that pass filters, as they are read for fetching."""
    reader = UrlTables(fetcher=Fetcher(), keys=["txt"], index_folder="cache")
    source = reader([name], filters=Filters(min_size=8, min_caption=2), image_sizes=True)
    skipped, values = dict(source.skipped()), {}
    for number in range(len(source.rows)):
        try:
            key, row = source.rows[number]
            values[key] = digest(row | {"size": source.image_sizes()[number].tolist()})
        except SkippedSampleError as error:
            skipped[str(error.reason)] = skipped.get(str(error.reason), 0) + 1
    return Samples(values, skipped)


def make_index(name: str) -> None:
    make_tables()
    read_table(name)


def make_links() -> None:
    states = LinkStates(Path("links/rows"))
    for row in range(20):
        states.record(row, SkipReason.FETCH_TIMEOUT if row % 3 else None)


def read_links() -> Any:
    states = LinkStates(Path("links/rows"))
    return states.counts().report(), [states.cause(row, retry_after=1e9) for row in range(20)]


def captions() -> Any:
    return text_lines(read_text("prompts.txt", setting="eval.inputs.file", wanted="captions"))


KINDS = [
    Kind("prompts", make_text, lambda: read_prompts("prompts.txt"), ["prompts.txt"], guarded=False),
    Kind("captions to evaluate on", make_text, captions, ["prompts.txt"], guarded=False, weight=0.3),
    Kind(
        "class names",
        make_text,
        lambda: read_class_names("names.txt", setting="class_names"),
        ["names.txt"],
        guarded=False,
        weight=0.5,
    ),
    Kind(
        "class names in JSON",
        make_text,
        lambda: read_class_names("names.json", setting="class_names"),
        ["names.json"],
        guarded=False,
        weight=0.5,
    ),
    Kind(
        "parquet tables",
        make_tables,
        lambda: read_table("rows.parquet"),
        ["rows.parquet"],
        guarded=False,
        weight=2,
    ),
    Kind(
        "JSON lines",
        make_tables,
        lambda: read_table("rows.jsonl"),
        ["rows.jsonl"],
        guarded=False,
        blind=["remove", "cut"],  # whole lines
    ),
    Kind(
        "cached rows of parquet tables",
        lambda: make_index("rows.parquet"),
        lambda: read_table("rows.parquet"),
        ["cache/**/*"],
        forge={"cache/*.json": forge_json},
    ),
    Kind(
        "cached rows of JSON lines",
        lambda: make_index("rows.jsonl"),
        lambda: read_table("rows.jsonl"),
        ["cache/**/*"],
    ),
    Kind("record of dead links", make_links, read_links, ["links/rows"], guarded=False, weight=0.3),
]
