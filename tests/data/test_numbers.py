"""Which values of metadata are numbers."""

import json
import math
from decimal import Decimal
from typing import Any

import pytest

from rfdit.data.numbers import LARGEST_SIDE, finite_number, is_missing, plain_json, whole_number

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "whole", "finite"),
    [
        (3, 3, 3.0),
        (3.0, 3, 3.0),
        (Decimal("3.00"), 3, 3.0),
        (" 3\n", 3, 3.0),
        ("3.0", 3, 3.0),
        ("3e2", 300, 300.0),
        (3.7, None, 3.7),
        ("3.7", None, 3.7),
        (Decimal("3.7"), None, 3.7),
        (-1, None, -1.0),
        (0, None, 0.0),
        (LARGEST_SIDE + 1, None, float(LARGEST_SIDE + 1)),
        (1e308, None, 1e308),
        (10**400, None, None),
        ("1e400", None, None),
        *((value, None, None) for value in (NAN, INF, -INF, "nan", "inf", "Infinity", Decimal("NaN"))),
        *(
            (value, None, None)
            for value in (True, False, None, "", "12abc", "1_000", "0x10", "³", "٣", "3 4")
        ),
        *((value, None, None) for value in ([3], {"n": 3}, b"3", "9" * 5000)),
    ],
)
def test_what_counts_as_a_number(value: Any, whole: int | None, finite: float | None) -> None:
    found = whole_number(value, least=1, most=LARGEST_SIDE)
    assert (found, type(found)) == (whole, type(whole))
    assert finite_number(value) == finite


def test_a_large_label_keeps_all_its_digits() -> None:
    for value in (2**53 + 1, str(2**53 + 1), Decimal(2**53 + 1)):
        assert whole_number(value, least=0, most=2**63 - 1) == 2**53 + 1


def test_what_counts_as_missing() -> None:
    assert all(map(is_missing, (None, NAN, Decimal("NaN"), "", " \n")))
    assert not any(map(is_missing, (0, False, INF, "nan", [])))


def test_data_as_json_can_hold_it() -> None:
    data = {"a": NAN, "b": [INF, {"c": -INF}], "d": 1.5, "e": "NaN", "f": None}
    plain = json.loads(json.dumps(plain_json(data), allow_nan=False))
    assert plain == {"a": None, "b": ["inf", {"c": "-inf"}], "d": 1.5, "e": "NaN", "f": None}
