"""Numbers in data that others have written: labels, sizes and scores in text, JSON and tables.

One rule for all of them: a number is an int, a float, a decimal of a table, or text that spells one ("3", "0.5",
"1e3"); never a bool, never text with anything else in it ("12abc", "1_000", "nan"), and always finite. A label
and the side of an image are whole besides, and no larger than whatever holds them.
"""

import math
import re
from decimal import Decimal
from typing import Any

LARGEST_LABEL = 2**63 - 1  # of the tensors of labels
LARGEST_SIDE = 2**31 - 1  # of an image, in pixels; no format that is read has more
DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MOST_DIGITS = 400  # of a number in text; a float has no more before its point


def is_missing(value: object) -> bool:
    """True for None, NaN, which tables write for a number that they do not have, and blank text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def finite_number(value: object) -> float | None:
    """A value as a number; None if it is not one, or not finite."""
    found = _number(value)
    try:
        number = None if found is None else float(found)
    except OverflowError:
        return None
    return number if number is not None and math.isfinite(number) else None


def whole_number(value: object, *, least: int, most: int) -> int | None:
    """A value as a whole number, 3 and 3.0 alike; None if it is not one, or not between `least` and `most`."""
    found = _number(value)
    # Infinite and NaN compare as False here, and int() is exact for whole floats and decimals.
    if found is None or not least <= found <= most or found != (number := int(found)):
        return None
    return number


def plain_json(value: Any) -> Any:
    """Data as JSON can hold it, which has no NaN and no infinity: null, and the text "inf" or "-inf"."""
    if isinstance(value, dict):
        return {name: plain_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if value != value else str(value)
    return value


def _number(value: object) -> int | float | Decimal | None:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > MOST_DIGITS or not DECIMAL.fullmatch(text):
            return None
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(value, Decimal):
        return value if value.is_finite() else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
