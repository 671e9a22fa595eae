"""A checkpoint is whole or is not there."""

from pathlib import Path

import pytest
import torch

from rfdit.training.checkpoint import AtomicCheckpointIO, find_checkpoint, newest_run, read_raw


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
