"""Checkpoints in parts: complete or refused, on one rank; tests/system/test_strategies.py has two ranks."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from rfdit.checkpoint.kept import Keeping
from rfdit.checkpoint.saved_run import read_raw
from rfdit.checkpoint.sharded import is_sharded, new_folder, read_sharded, write_sharded
from rfdit.conditioning import LabelConditioner
from rfdit.ema import Averages, FixedDecay
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.training.checkpoint_io import AtomicCheckpointIO
from rfdit.training.strategy import FullySharded


@pytest.fixture(autouse=True)
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def checkpoint(value: float = 1.0) -> dict[str, Any]:
    moments = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.full((4,), value)}},
        "param_groups": [],
    }
    return {
        "global_step": 7,
        "state_dict": {"network.weight": torch.full((4, 2), value)},
        "ema": {"ema": {"updates": 7, "network": {"weight": torch.full((4, 2), value / 2)}}},
        "optimizer_states": [moments],
        "callbacks": {"seen": torch.arange(3)},
    }


def write(path: Path, value: float = 1.0) -> None:
    folder = path.with_name(new_folder(path, 7))
    folder.mkdir()
    write_sharded(checkpoint(value), path, folder)


def flip_a_byte(folder: Path, value: float) -> str:
    """Flip a byte of a tensor that holds `value`; returns the name of the part."""
    (part,) = folder.glob("last*.shards/*.safetensors")
    data = bytearray(part.read_bytes())
    data[data.index(torch.full((8,), value).numpy().tobytes()) + 6] ^= 1
    part.write_bytes(data)
    return part.name


def assert_holds(path: Path, value: float) -> None:
    found = read_raw(path)
    assert found.keys() == checkpoint().keys()
    assert torch.equal(found["state_dict"]["network.weight"], torch.full((4, 2), value))
    assert torch.equal(found["ema"]["ema"]["network"]["weight"], torch.full((4, 2), value / 2))
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], torch.full((4,), value))
    assert torch.equal(found["callbacks"]["seen"], torch.arange(3))


def test_what_was_written_is_read_and_what_was_before_is_gone(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write(tmp_path / "last.ckpt", value)
        assert is_sharded(tmp_path / "last.ckpt")
        assert_holds(tmp_path / "last.ckpt", value)
        assert len(list(tmp_path.glob("last*"))) == 2  # the name, and what it means
    assert_holds(tmp_path / "last.ckpt", 2.0)


def test_a_part_that_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt")
    part = next(tmp_path.glob("last*.shards/*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=rf"last\.ckpt is incomplete: {part.name} has \d+ bytes instead of \d+"
    ):
        read_raw(tmp_path / "last.ckpt")
    part.unlink()
    with pytest.raises(ValueError, match=rf"last\.ckpt is incomplete: {part.name} is missing"):
        read_raw(tmp_path / "last.ckpt", weights=False)


def test_a_damaged_part_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "last.ckpt")
    part = next(tmp_path.glob("last*.shards/*.safetensors"))
    part.write_bytes(b"\xff" * part.stat().st_size)
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: {part.name}"):
        read_raw(tmp_path / "last.ckpt")
    monkeypatch.setattr("rfdit.checkpoint.sharded.verify_checksums", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read: .*; take another checkpoint"):
        read_raw(tmp_path / "last.ckpt")


@pytest.mark.parametrize("value", [1.0, 0.5])  # of the weights, and of the average
def test_a_flipped_byte_of_a_part_is_noticed(tmp_path: Path, value: float) -> None:
    write(tmp_path / "last.ckpt")
    part = flip_a_byte(tmp_path, value)
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: {part} .*; take another checkpoint"):
        read_raw(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: {part}"):  # as training reads it
        read_sharded(tmp_path / "last.ckpt", empty=lambda keys, form: torch.empty_like(form, device="cpu"))
    assert read_raw(tmp_path / "last.ckpt", weights=False)["global_step"] == 7  # which was not damaged


def test_a_flipped_byte_beside_the_parts_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt")
    (rest,) = tmp_path.glob("last*.shards/rest.pt")
    data = bytearray(rest.read_bytes())
    data[data.index(torch.arange(3).numpy().tobytes()) + 8] ^= 2
    rest.write_bytes(data)
    for weights in (True, False):
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged: rest\.pt \(archive/data/0\)"):
            read_raw(tmp_path / "last.ckpt", weights=weights)


def test_a_part_of_another_state_is_noticed(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "last.ckpt", value)
    (foreign,) = tmp_path.glob("other/last*.shards/*.safetensors")
    (mine,) = tmp_path.glob("one/last*.shards/*.safetensors")
    for suffix in ("", ".json"):  # whole, with the note that belongs to it
        shutil.copy(f"{foreign}{suffix}", f"{mine}{suffix}")
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: a \.json file of a part"):
        read_raw(tmp_path / "one/last.ckpt", weights=False)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is damaged: a .json file of a part"), (None, "is incomplete: 0 of 1 parts")]
)
def test_a_note_that_is_damaged_or_missing_is_noticed(tmp_path: Path, text: str | None, told: str) -> None:
    write(tmp_path / "last.ckpt")
    (beside,) = tmp_path.glob("last*.shards/*.json")
    beside.unlink() if text is None else beside.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"last.ckpt {told}")):
        read_raw(tmp_path / "last.ckpt")


def test_what_cannot_be_written_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(path)
    folder = path.with_name(new_folder(path, 8))
    folder.write_bytes(b"in the way")  # where a folder should be: as if there were no room
    with pytest.raises(OSError, match=r"last\.ckpt cannot be written: "):
        write_sharded(checkpoint(5.0), path, folder)
    assert_holds(path, 1.0)


def test_a_rank_that_has_gone_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    path = tmp_path / "last.ckpt"
    write(path)
    monkeypatch.setattr("torch.distributed.checkpoint.save", gather)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        write(path, 5.0)
    assert_holds(path, 1.0)
    assert len(list(tmp_path.glob("*.shards"))) == 1  # nothing of the new state


@pytest.mark.parametrize("sharded", [True, False])
def test_a_copy_that_followed_the_link_is_replaced(tmp_path: Path, sharded: bool) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run/last.ckpt")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # follows links
    path = tmp_path / "copy/last.ckpt"
    assert path.is_dir()
    assert not path.is_symlink()
    assert_holds(path, 1.0)
    if sharded:
        write(path, 3.0)
    else:
        AtomicCheckpointIO().save_checkpoint(checkpoint(3.0), path)
    assert_holds(path, 3.0)
    assert len(list(path.parent.iterdir())) == (2 if sharded else 1)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt-abcd_123.partial").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "last.ckpt")
    assert [file.name for file in tmp_path.glob("*last*")] == ["last.ckpt"]


def test_no_room_is_told_in_a_sentence(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = checkpoint() | {"state_dict": {"network.weight": torch.zeros(1 << 18)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written|too large"):
            AtomicCheckpointIO().save_checkpoint(large, tmp_path / "last.ckpt")
        folder = tmp_path / new_folder(tmp_path / "last.ckpt", 1)
        folder.mkdir()
        with pytest.raises(OSError, match="cannot be written"):
            write_sharded(large, tmp_path / "last.ckpt", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.glob("*last*")) == []  # not a half of it


def test_null_labels_outlive_the_table_that_was_gathered_for_them() -> None:
    strategy = FullySharded(gather_bf16=False, timeout_minutes=1)
    strategy.mesh = init_device_mesh("cpu", (1,))
    network = Network(
        backbone=DiT(width=16, depth=1, num_heads=2, patch_size=2, in_channels=1, input_size=4),
        conditioner=LabelConditioner(num_classes=3, width=16),
    )
    averages = Averages(network=network, profiles={"ema": FixedDecay(decay=0.9)})
    expected = network.conditioner.null(device=torch.device("cpu")).pooled.clone()
    for each in (network, *averages.networks.values()):
        strategy.shard(each)
    averages.start(network, {})
    for each in (network, *averages.networks.values()):
        found = each.conditioner.null(device=torch.device("cpu"))
        assert torch.equal(found.expand(2).pooled, expected.expand(2, -1))


def test_a_kept_state_outlives_the_next_one(tmp_path: Path) -> None:
    last, kept = tmp_path / "last.ckpt", tmp_path / "step_00000007.ckpt"
    write(last, 1.0)
    Keeping(kept).after_writing(last)
    write(last, 2.0)
    assert_holds(kept, 1.0)
    assert_holds(last, 2.0)
    Keeping(tmp_path / "step_00000008.ckpt", [kept]).after_writing(last)
    assert len(list(tmp_path.glob("last.*.shards"))) == 1
    assert_holds(tmp_path / "step_00000008.ckpt", 2.0)
