"""evaluations.jsonl: the evaluations of a run, one per line."""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from rfdit.data.numbers import finite_number
from rfdit.eval.protocol import EvalProtocol
from rfdit.storage.atomic import naming, write_bytes
from rfdit.storage.checked import checked_json, parse_checked_json
from rfdit.storage.locks import locked
from rfdit.storage.untrusted import explained

NAME = "evaluations.jsonl"
BEGINNING = b'{"name": "'  # of each record


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation. weights: name of the average, or raw. seconds: its duration. time: ISO 8601."""

    name: str
    step: int
    weights: str
    values: Mapping[str, float]
    protocol: EvalProtocol
    seconds: float
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def line(self) -> str:
        """The values as text."""
        values = (f"{k}={v:.2f}" if abs(v) >= 1 else f"{k}={v:.3g}" for k, v in self.values.items())
        return f"{self.name}: {' '.join(values)}"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "EvaluationRecord":
        """The record in plain data, without the values that are not finite.

        Raises ValueError, in a phrase, for anything else.
        """
        with explained("it is not the record of an evaluation"):
            values = {name: finite_number(value) for name, value in record["values"].items()}
            for name, kind in (("name", str), ("step", int), ("weights", str), ("time", str)):
                if name in record and type(record[name]) is not kind:
                    raise ValueError(f"its {name} is {record[name]!r:.40}")
            for name, value in record["values"].items():
                if values[name] is None and not isinstance(value, float):
                    raise ValueError(f"its value of {name} is {value!r:.40}")
            if (seconds := finite_number(record["seconds"])) is None:
                raise ValueError(f"its seconds are {record['seconds']!r:.40}")
            finite = {name: value for name, value in values.items() if value is not None}
            protocol = EvalProtocol.from_dict(record["protocol"])
            return cls(**dict(record) | {"values": finite, "seconds": seconds, "protocol": protocol})

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"values": dict(self.values), "protocol": self.protocol.as_dict()}


def append_record(folder: Path, record: EvaluationRecord) -> None:
    """Appends a line; readers see the whole line or none of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder / NAME), locked(folder / NAME, append=True) as file:
        file.seek(0, os.SEEK_END)
        # A killed writer's partial line is ended, so that it does not damage this one.
        partial = file.tell() > 0 and not _ends_a_line(file)
        file.write(b"\n" * partial + checked_json(record.as_dict(), indent=None) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, oldest first, without partial lines of killed writers.

    Warns of lines that have changed since they were written, which are left out too.
    """
    return [record for _, record in _parse(folder / NAME)]


def read_evaluations(folder: Path) -> list[EvaluationRecord]:
    """As `read_records`, but warns of every row that is not an evaluation, by its line, and leaves it out."""
    found = []
    for number, record in _parse(folder / NAME):
        try:
            found.append(EvaluationRecord.from_dict(record))
        except ValueError as error:
            warnings.warn(f"{folder / NAME}: line {number} is left out: {error}", stacklevel=2)
    return found


def drop_after(folder: Path, step: int) -> int:
    """Removes the records of later steps, which a resumed run measures again; returns how many."""
    path = folder / NAME
    if not path.exists():
        return 0
    with locked(path, append=True):
        records = [record for _, record in _parse(path)]
        # Records of other programs stay, whatever is in them.
        kept = [each for each in records if type(each.get("step")) is not int or each["step"] <= step]
        if len(kept) < len(records):
            lines = b"".join(checked_json(record, indent=None) + b"\n" for record in kept)
            write_bytes(path, lines, durable=True)
    return len(records) - len(kept)


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parse(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, record) of the records in a file, if there is one. Those of other programs have no checksum."""
    records: list[tuple[int, dict[str, Any]]] = []
    changed: list[int] = []
    if not path.exists():
        return records
    seen: set[bytes] = set()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line in seen:  # one record, which damage has repeated
            continue
        seen.add(line)
        record = _record(line)
        if record is not None:
            records.append((number, record))
        elif line and not _is_partial(line):
            changed.append(number)
    if changed:
        warnings.warn(
            f"{path} is damaged or was edited: line {', '.join(map(str, changed))} is not what was written and is "
            "left out",
            stacklevel=3,
        )
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if it is not what was written."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or "checksum" in record:
            return parse_checked_json(line, place=NAME)
    except (ValueError, RecursionError):
        return None
    return record


def _is_partial(line: bytes) -> bool:
    """True for the beginning of a record, which a killed writer has left."""
    whole = line.endswith(b"}") or b"\0" in line
    return not whole and (line.startswith(BEGINNING) or BEGINNING.startswith(line))
