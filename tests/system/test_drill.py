"""The drill finds what it looks for; a few corruptions of each kind of file and kills of each command do no harm."""

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.system.drill.corruptions import FAULTS, Workshop, corrupt
from tests.system.drill.kills import Work, kill
from tests.system.drill.kind import Kind, Samples
from tests.system.drill.kinds import KINDS
from tests.system.drill.mutations import ALL
from tests.system.drill.works import WORKS

# Kinds whose files take a run of training or a heavy import; the slow test has them.
SLOW = (
    "sharded checkpoint", "exported folder exported again", "diffusers folder", "snapshots of averages",
    "autoencoder of diffusers", "run that is resumed", "runs of a report", "points of a sweep", "image to inpaint",
    "JPEG to inpaint", "TIFF to inpaint", "rows of an evaluation", "PNG outputs",
    "parts of array outputs",
    "array outputs", "tar outputs", "published weights", "published weights of torch", "array of images",
    "compressed array of images", "packed shards packed again", "latents encoded again",
    "indexes written again", "latents by URL", "exported folder",
)  # fmt: skip


def write_numbers() -> None:
    Path("numbers.json").write_text(json.dumps({"numbers": [1, 2, 3]}))


def outcomes(folder: Path, read: Any, **settings: Any) -> set[str]:
    kind = Kind("numbers", write_numbers, read, ["numbers.json"], **settings)
    return {one.outcome for one in corrupt(kind, folder, seed=0, numbers=range(15))}


def careless() -> Any:
    return Path("numbers.json").read_bytes().count(b"1")


def naming() -> Any:
    try:
        return json.loads(Path("numbers.json").read_text())["numbers"]
    except Exception as error:
        raise ValueError(f"numbers.json is damaged: {type(error).__name__}") from None


def counting() -> Samples:
    numbers = naming()
    return Samples({str(n): n for n in numbers if n in (1, 2, 3)}, {})


def waits() -> None:
    if naming() != [1, 2, 3]:
        time.sleep(600)


def forge(file: Path, draw: Random) -> None:
    file.write_text(json.dumps({"numbers": []}))


def test_each_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "another number in silence" in outcomes(tmp_path / "silent", careless)
    assert "traceback" in outcomes(
        tmp_path / "raises", lambda: json.loads(Path("numbers.json").read_text())["numbers"]
    )
    assert "another number in silence" in outcomes(tmp_path / "drops", counting, guarded=False)
    assert outcomes(tmp_path / "names", naming, guarded=False).isdisjoint(FAULTS)
    monkeypatch.setattr("tests.system.drill.corruptions.SECONDS", 0.2)
    assert "hang" in outcomes(tmp_path / "waits", waits, forge={"*.json": forge})


def test_a_corruption_is_a_function_of_seed_kind_and_number(tmp_path: Path) -> None:
    def files(folder: Path, numbers: list[int]) -> dict[int, Any]:
        kind = Kind("numbers", write_numbers, careless, ["numbers.json"])
        return {one.number: one for one in corrupt(kind, folder, seed=3, numbers=numbers)}

    assert files(tmp_path / "all", [0, 1, 2, 3])[3] == files(tmp_path / "one", [3])[3]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name not in SLOW], ids=lambda kind: kind.name
)
def test_a_few_corruptions_do_no_harm(kind: Kind, tmp_path: Path) -> None:
    assert [one for one in corrupt(kind, tmp_path / "kind", seed=0, numbers=range(3)) if one.is_fault] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in SLOW], ids=lambda kind: kind.name)
def test_a_few_corruptions_of_large_files_do_no_harm(kind: Kind, tmp_path: Path) -> None:
    assert [one for one in corrupt(kind, tmp_path / "kind", seed=0, numbers=range(3)) if one.is_fault] == []


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_kill_of_each_command_does_no_harm(work: Work, tmp_path: Path) -> None:
    assert [one for one in kill(work, tmp_path / "work", seed=0, count=1) if one.is_fault] == []


def test_every_damage_can_be_done(tmp_path: Path) -> None:
    kind = Kind("numbers", write_numbers, naming, ["numbers.json"], guarded=False)
    shop = Workshop(kind, tmp_path / "kind", seed=0)
    shop.make()
    shop.read_whole()
    assert {shop.corrupt(number).damage for number in range(200)} == set(ALL)
