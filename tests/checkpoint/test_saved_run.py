"""A checkpoint is complete or does not exist."""

from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rfdit.checkpoint.resume import changed_settings, find_checkpoint, newest_run
from rfdit.checkpoint.saved_run import FORMAT, SavedRun, checkpoint_header, read_checkpoint, read_raw
from rfdit.training.checkpoint_io import AtomicCheckpointIO


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "run/last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rfdit.storage.atomic.os.fsync", full_disk)
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
    """Wherever the damage is, either the written values are read, or nothing."""
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


def test_an_unknown_byte_order_is_damage(tmp_path: Path, whole: bytes) -> None:
    """PyTorch raises a ValueError of its own about it."""
    with ZipFile(BytesIO(whole)) as old, ZipFile(tmp_path / "odd.ckpt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"odd" if name.endswith("byteorder") else old.read(name))
    with pytest.raises(ValueError, match=r"^ckpt=.*odd\.ckpt cannot be read as a checkpoint \(ValueError\)"):
        read_raw(tmp_path / "odd.ckpt")


def test_settings_that_differ_are_named_and_a_run_s_own_folder_is_none_of_them() -> None:
    mine: dict[str, Any] = {"run_dir": "a", "logger": {"folder": "a/log"}, "ema": {"n": 4}}
    theirs: dict[str, Any] = {"run_dir": "b", "logger": {"folder": "b/log"}, "ema": {"n": 1}}
    assert changed_settings(theirs, mine) == ["ema.n=4 (there 1)"]
    assert changed_settings(theirs, mine | {"ema": None}) == ["ema=null (there other settings)"]


def test_a_checkpoint_of_another_format_is_told_in_a_sentence(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "run.ckpt").write_bytes(whole)
    raw = read_raw(tmp_path / "run.ckpt")
    torch.save(raw | {"rfdit": checkpoint_header({}, {}) | {"format": 0}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=rf"other\.ckpt has format 0, and this rfdit reads format {FORMAT}"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("runs/a/checkpoints/last.ckpt", "runs/a"),
        ("elsewhere/best.ckpt", "elsewhere"),
        ("exported", "exported"),
    ],
)
def test_a_saved_run_tells_what_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exported").mkdir()
    model = {"in_channels": 4, "input_size": [8, 16]}
    labels = SavedRun(Path(path), 1, {"model": model, "conditioner": {"num_classes": 9}}, {}, {}, {})
    captions = SavedRun(Path(path), 1, {"model": model | {"input_size": 8}, "conditioner": {}}, {}, {}, {})
    assert labels.run_folder == Path(folder)
    assert (labels.knows_labels, labels.num_classes, labels.latent_shape) == (True, 9, (4, 8, 16))
    assert (captions.knows_labels, captions.num_classes, captions.latent_shape) == (False, None, (4, 8, 8))
