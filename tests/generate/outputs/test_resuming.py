"""What a later start takes over from an earlier one: whole pieces, and no others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rfdit.generate.outputs.npz_array import NpzArray
from rfdit.generate.outputs.output import Job, Output
from rfdit.generate.outputs.tar_shards import TarShards
from rfdit.generate.produce import Task, produce
from rfdit.generate.request import ContactSheet, SampleRequest, Specs
from rfdit.images import UInt8Images
from rfdit.processes.rank import Process
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from tests.support.models.pipelines import pipeline, small_network


class Counted:
    """A use whose images depend on their key alone; counts them, and fails at the image number `last`."""

    def __init__(self, *, last: int | None = None) -> None:
        self.made, self.last = 0, last

    def sheet(self, request: SampleRequest) -> ContactSheet:
        return request.sheet()

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        if self.made == self.last:
            raise RuntimeError
        self.made += len(specs)
        keys = torch.tensor([spec.key for spec in specs], dtype=torch.uint8)
        return keys[:, None, None, None].expand(-1, 3, 4, 4).clone()

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        return folder


def start(output: Output, folder: Path, *, last: int | None = None) -> int:
    """One start of a command for six images in pieces of two; returns how many of them it made."""
    made_by, use = pipeline(small_network()), Counted(last=last)
    sheet = SampleRequest(inputs=[0], captions=["0"], count=6).sheet()
    job = Job(folder=folder, sheet=sheet, use=use, settings={"seed": 0}, batch_size=2)
    output.open(job)
    produce(Task(job, output, {None: made_by}, made_by.conditions([0])), Process())
    return use.made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "empty": lambda data: b"",
    "cut": lambda data: data[:-20],
    "a byte more": lambda data: data + b"\0",
    "a changed bit": flip,
}
TAR, NPZ = TarShards(images_per_shard=2), NpzArray(images_per_part=2)


def test_a_piece_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    """Of the piece itself and of its record; the others stay. An array's parts become one file at the end."""
    start(TAR, tmp_path / "tar")
    with pytest.raises(RuntimeError):
        start(NPZ, tmp_path / "npz", last=4)
    start(NPZ, tmp_path / "whole")
    for output, folder, piece, left in (
        (TAR, tmp_path / "tar", "00001.tar", 0),
        (NPZ, tmp_path / "npz", "parts/00001.npy", 2),
        (NPZ, tmp_path / "whole", "samples.npz", 0),
    ):
        before, images = contents(folder), 6 if piece == "samples.npz" else 2
        for damaged in (piece, f"{piece}.json"):
            for what, damage in DAMAGE.items():
                for name, data in before.items():
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_bytes(data)
                (folder / damaged).write_bytes(damage(before[damaged]))
                expected = left + (0 if what == "none" else images)
                assert start(output, folder) == expected, (damaged, what)
                whole = contents(tmp_path / "whole") if output is NPZ else before
                assert contents(folder) == whole, (damaged, what)
                if piece.startswith("parts"):
                    for path in folder.glob("samples.npz*"):
                        path.unlink()


def test_a_record_of_the_request_that_was_changed_is_not_continued(tmp_path: Path) -> None:
    start(TAR, tmp_path)
    record = tmp_path / "request.json"
    for changed in (
        b"",
        record.read_bytes()[:30],
        record.read_bytes().replace(b'"seed": 0', b'"seed": 1'),
        json.dumps({"seed": 0}).encode(),
    ):
        record.write_bytes(changed)
        with pytest.raises(
            ValueError, match=r"^out=.* cannot be continued: .*request\.json is damaged or was edited"
        ):
            start(TAR, tmp_path)
