"""evaluations.jsonl: one line for each evaluation of a run."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from rfdit.data.unfinished_files import write_locked
from rfdit.eval.protocol import EvalProtocol

NAME = "evaluations.jsonl"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation. weights: the average's name, or raw. seconds: that it took. time: ISO 8601."""

    name: str
    step: int
    weights: str
    values: Mapping[str, float]
    protocol: EvalProtocol
    seconds: float
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def line(self) -> str:
        """The numbers, for people."""
        values = (f"{k}={v:.2f}" if abs(v) >= 1 else f"{k}={v:.3g}" for k, v in self.values.items())
        return f"{self.name}: {' '.join(values)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"values": dict(self.values), "protocol": self.protocol.as_dict()}


def append_record(folder: Path, record: EvaluationRecord) -> None:
    """Adds a line; readers see the whole line or nothing of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / NAME) as file:
        # What a killed writer has left of a line stays one of its own.
        torn = file.tell() > 0 and not _ends_a_line(file)
        file.write(b"\n" * torn + json.dumps(record.as_dict()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, oldest first; a line that a killed writer has left half is none."""
    path = folder / NAME
    return _parse(path.read_bytes()) if path.exists() else []


def drop_after(folder: Path, step: int) -> int:
    """Removes the records of later steps, which a resumed run does again; returns how many."""
    path = folder / NAME
    if not path.exists():
        return 0
    with _locked(path):
        records = _parse(path.read_bytes())
        kept = [record for record in records if record["step"] <= step]
        if len(kept) < len(records):
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            write_locked(path, lambda file: file.write(lines.encode()))
    return len(records) - len(kept)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file, open at its end, while nobody else writes to it."""
    while True:
        with path.open("ab+") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # Somebody may have put another in its place while this one waited.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.seek(0, os.SEEK_END)
                yield file
                return


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parse(lines: bytes) -> list[dict[str, Any]]:
    records = []
    for line in lines.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the rest of a line
            continue
    return records
