"""Text of other programs: encodings, line ends and JSON."""

import codecs
from pathlib import Path

import pytest

from rfdit.storage.text import decode_text, parse_json, read_text, text_lines

TEXT = "ein Kätzchen 🐱\r\na dog"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_names_the_encoding_and_is_not_text(encoding: str) -> None:
    mark = "\ufeff".encode(encoding)
    assert decode_text(mark + TEXT.encode(encoding)) == TEXT
    assert decode_text(TEXT.encode()) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "a\nKätzchen".encode("latin-1"),
            r"is not text in UTF-8 \(a wrong byte in line 2\); save it as UTF-8",
        ),
        ("a cat".encode("utf-16-le"), "is not text .* zero byte"),
        (codecs.BOM_UTF16_LE + b"a", "is not text in UTF-16-LE"),
        (b"\x89PNG\r\n\x1a\n", "is not text in UTF-8"),
    ],
)
def test_other_encodings_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_text(data)


def test_lines_end_with_line_feeds_only() -> None:
    odd = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh"
    assert text_lines(f"{odd}\r\n\n  \n {odd} \n") == [odd, odd]


@pytest.mark.parametrize("text", ["{", '{"a": 1}]', "[" * 200_000])
def test_what_is_not_json_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not JSON|is nested too deeply"):
        parse_json(text)
    assert parse_json(codecs.BOM_UTF8 + b'{"a": "\xc3\xa4"}') == {"a": "ä"}


def test_errors_name_setting_and_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    for name, reason in (
        ("a.txt", "is not text in UTF-8"),
        ("b.txt", "is not a file; give prompts"),
        ("", "is not"),
    ):
        with pytest.raises(ValueError, match=rf"^prompts={tmp_path / name} {reason}"):
            read_text(tmp_path / name, setting="prompts", wanted="prompts")
