"""Files with a checksum: what was written is read, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from rfdit.storage.checked import (
    DamagedFileError,
    check_text,
    checked_json,
    checked_text,
    parse_checked_json,
    read_checked_arrays,
    read_checked_json,
    write_checked_arrays,
    write_checked_json,
)

DATA = {"name": "é", "numbers": [1, 0.1, None], "nested": {"checksum": "mine"}}


@pytest.mark.parametrize("indent", [None, 2])
def test_no_other_json_is_read(indent: int | None) -> None:
    text = checked_json(DATA, indent=indent)
    assert parse_checked_json(text, place="a.json") == DATA
    for place in range(len(text)):
        for damaged in (text[:place], text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]):
            try:
                found = parse_checked_json(damaged, place="a.json")
            except DamagedFileError as error:
                assert str(error).startswith("a.json is damaged")  # noqa: PT017
            else:
                assert found == DATA  # white space at the end
    with pytest.raises(DamagedFileError):
        parse_checked_json(checked_json({"a": 1}).replace(b"1", b"[" * 100_000), place="a.json")


def test_no_other_arrays_are_read(tmp_path: Path) -> None:
    path = tmp_path / "new/a.npz"
    write_checked_arrays(path, {"n": 1}, spans=np.arange(6).reshape(3, 2))
    about, arrays = read_checked_arrays(path)
    assert about == {"n": 1}
    assert arrays["spans"].tolist() == [[0, 1], [2, 3], [4, 5]]
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(DamagedFileError, match=r"a\.npz is damaged"):
                read_checked_arrays(path)


def test_a_missing_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    for read in (read_checked_json, read_checked_arrays):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "a")
    write_checked_json(tmp_path / "a", DATA)
    assert read_checked_json(tmp_path / "a") == DATA


def test_a_text_that_has_changed_anywhere_is_damaged_and_anothers_is_not() -> None:
    whole = checked_text("a: 1\nb: [2]\n")
    check_text(whole, place="x.yaml")
    for others in (b"a: 1\n", b"# checksums\n"):
        check_text(others, place="x.yaml")
    changed = [whole[:cut] for cut in range(70, len(whole))] + [
        whole[cut:] for cut in range(1, len(whole) - 50)
    ]
    changed += [b"", whole.replace(b"1", b"2", 1), whole + b"c: 3\n", whole.replace(b"a: 1\n", b"")]
    for damaged in changed:
        with pytest.raises(DamagedFileError, match=r"^x\.yaml is damaged or was edited"):
            check_text(damaged, place="x.yaml")
