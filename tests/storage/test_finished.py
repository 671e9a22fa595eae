"""Records of finished files."""

from pathlib import Path

from rfdit.storage.finished import is_finished, read_record, write_finished, write_record


def test_the_record_of_a_file_is_of_this_file_alone(tmp_path: Path) -> None:
    record, file = tmp_path / "a.json", tmp_path / "a.tar"
    assert read_record(record, file) is None
    file.write_bytes(b"abc")
    assert read_record(record, file) is None
    write_record(record, file, {"samples": 3})
    assert read_record(record, file) == {"samples": 3}
    file.write_bytes(b"abd")
    assert read_record(record, file) is None
    assert read_record(record, file, checksum=False) == {"samples": 3}
    file.write_bytes(b"ab")
    assert read_record(record, file, checksum=False) is None
    file.unlink()
    assert read_record(record, file, checksum=False) is None


def test_there_may_be_nothing_to_write(tmp_path: Path) -> None:
    record, file = tmp_path / "a.json", tmp_path / "a.tar"
    write_record(record, file, {"samples": 0})
    assert read_record(record, file) == {"samples": 0}
    file.write_bytes(b"")
    assert read_record(record, file) is None


def test_a_file_has_its_record_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new/a.npy"
    assert not is_finished(file)
    write_finished(file, lambda opened: opened.write(b"abc"))
    assert is_finished(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.npy", "a.npy.json"]
    (tmp_path / "file").write_bytes(b"")
    assert not is_finished(tmp_path / "file/a.npy")
