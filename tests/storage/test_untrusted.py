"""Files of unknown origin are within bounds, or told in a sentence that names them."""

from pathlib import Path

import pytest

from rfdit.storage.untrusted import check_plain, explained, read_json, unreadable


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"\x80",
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b"[" * 500 + b"]" * 500,
        b"1" * 5000,
        b"{'a': 1}",
    ],
    ids=["empty", "cut", "utf-16", "latin", "200,000 deep", "500 deep", "a long number", "python"],
)
def test_what_is_not_json_is_told_with_the_files_name(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"^\S+/a\.json is (not a JSON file|nested too deeply)") as raised:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(raised.value)


def test_json_of_other_encodings_and_marks_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text('{"ä": [1, null]}', encoding=encoding)
        assert read_json(tmp_path / "a.json") == {"ä": [1, None]}


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=rf"^{tmp_path} cannot be read: Is a directory$"):
        read_json(tmp_path)
    error = unreadable("ckpt=a", PermissionError(13, "Permission denied", "a"))
    assert (type(error), str(error)) == (PermissionError, "ckpt=a cannot be read: Permission denied")


def test_plain_data_passes() -> None:
    check_plain({"a": [1, 1.5, "x", None, True, {"b": []}]}, "data")


def test_errors_become_one_sentence_and_sentences_stay() -> None:
    with (
        pytest.raises(ValueError, match=r"^the file is odd \(KeyError: 'a'\)$"),
        explained("the file is odd"),
    ):
        _ = dict[str, int]()["a"]
    for error in (ValueError("as it is"), OSError("as it is")):
        with pytest.raises(type(error), match=r"^as it is$"), explained("the file is odd"):
            raise error
