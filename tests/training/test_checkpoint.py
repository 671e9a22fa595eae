"""A checkpoint is whole or is not there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rfdit.training.checkpoint import changed_settings, find_checkpoint, newest_run, read_raw
from rfdit.training.checkpoint_io import AtomicCheckpointIO


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "run/last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rfdit.training.checkpoint.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"step": 2, "weights": torch.ones(1000)}, path)
    assert read_raw(path) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_loading_never_runs_code_whatever_is_asked(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="which is never loaded"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)


def test_find_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match="is a folder without checkpoints"):
        find_checkpoint(str(tmp_path / "run"))
    (run / "best.ckpt").touch()
    assert find_checkpoint(str(tmp_path / "run")) == run / "best.ckpt"  # the only one
    (run / "last.ckpt").touch()
    assert find_checkpoint(str(tmp_path / "run")) == run / "last.ckpt"
    assert find_checkpoint(str(run)) == run / "last.ckpt"
    assert find_checkpoint(str(run / "best.ckpt")) == run / "best.ckpt"
    with pytest.raises(ValueError, match="does not exist"):
        find_checkpoint(str(tmp_path / "other"))
    assert newest_run(tmp_path) == tmp_path / "run"
    assert newest_run(tmp_path / "run" / "checkpoints") is None


WEIGHTS = {"weight": torch.arange(300.0), "step": torch.tensor(3.0)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint's bytes."""
    path = tmp_path_factory.mktemp("whole") / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 7, "state_dict": WEIGHTS}, path)
    return path.read_bytes()


@pytest.mark.parametrize("bits", [1, 0x80, 0xFF])
def test_a_flipped_byte_of_a_tensor_is_noticed(tmp_path: Path, whole: bytes, bits: int) -> None:
    data = bytearray(whole)
    data[data.index(WEIGHTS["weight"].numpy().tobytes()) + 501] ^= bits
    (tmp_path / "flipped.ckpt").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"flipped\.ckpt is damaged: archive/data/0 .*; take another checkpoint"
    ):
        read_raw(tmp_path / "flipped.ckpt")
    assert read_raw(tmp_path / "flipped.ckpt", weights=False)["global_step"] == 7  # which was not damaged


def test_a_flipped_byte_beside_the_tensors_is_noticed_by_every_reader(tmp_path: Path, whole: bytes) -> None:
    data = bytearray(whole)
    data[data.index(b"K\x07") + 1] = 8  # global_step, in pickle's words
    (tmp_path / "flipped.ckpt").write_bytes(data)
    for weights in (True, False):
        with pytest.raises(ValueError, match=r"flipped\.ckpt is damaged: archive/data\.pkl"):
            read_raw(tmp_path / "flipped.ckpt", weights=weights)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_no_flipped_byte_goes_unnoticed(tmp_path: Path, whole: bytes, place: float, bits: int) -> None:
    """Anywhere in the file: what is read is what was written, or nothing."""
    data = bytearray(whole)
    data[int(place * len(data))] ^= bits
    (tmp_path / "flipped.ckpt").write_bytes(data)
    try:
        found = read_raw(tmp_path / "flipped.ckpt")
    except ValueError as error:
        assert str(error).endswith("take another checkpoint")  # noqa: PT017
        return
    assert found["global_step"] == 7
    assert save(found["state_dict"]) == save(WEIGHTS)


def test_a_setting_that_older_runs_did_not_have_is_changed_only_if_they_did_otherwise() -> None:
    old: dict[str, Any] = {"seed": 0, "callbacks": {"ema": {"snapshots": None}}}
    same: dict[str, Any] = {"seed": 0, "callbacks": {"ema": {"snapshots": None, "every_n_steps": 1}}}
    assert changed_settings(old, same) == []
    assert changed_settings(same, old) == ["callbacks.ema.every_n_steps=None (there 1)"]
    same["callbacks"]["ema"]["every_n_steps"] = 4
    assert changed_settings(old, same) == ["callbacks.ema.every_n_steps=4 (there 1)"]
    assert changed_settings({"callbacks": {"ema": None}}, {"callbacks": {"ema": None}}) == []
