"""Text in files that other programs have written: its encoding, its lines, and its JSON.

Prompts, captions, class names, tables and metadata are all read by these functions, so that one file means the
same wherever it is given.
"""

import codecs
import json
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 28  # of a text file that is read whole

# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes) -> str:
    """The text of a file in UTF-8, or in the Unicode encoding whose byte order mark it begins with.

    Raises ValueError for other encodings, with a message that continues a sentence about the file.
    """
    mark, encoding = next((each for each in MARKS if data.startswith(each[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"is not text in {encoding.upper()} (a wrong byte in line {line}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError("is not text (it has a zero byte); save it as UTF-8")
    return text


def text_lines(text: str) -> list[str]:
    r"""The lines that are not blank, without surrounding white space. They end with \n or \r\n.

    `str.splitlines` would also cut at a form feed, U+0085, U+2028 and other characters that captions contain.
    """
    return [line.strip() for line in text.split("\n") if line.strip()]


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text, decoded as by `decode_text`. Raises ValueError for anything else."""
    text = decode_text(data) if isinstance(data, bytes) else data
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None


def read_text(path: str | Path, *, setting: str, wanted: str) -> str:
    """The text of a file that a setting names.

    wanted: the file to give, in words. Raises ValueError, naming `setting`, for a file that is missing, too
    large, not readable, or in another encoding.
    """
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise ValueError(f"is not a file; give {wanted}")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES >> 20} MB; give {wanted}")
        return decode_text(file.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{setting}={path} cannot be read: {error.strerror or error}; give {wanted}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{setting}={path} {error}") from None
