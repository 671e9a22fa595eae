"""A power law is found where there is one, and not made up where there is none."""

import numpy as np
import pytest

from rfdit.reporting.plots import fit_power_law


def test_an_exact_power_law_is_found() -> None:
    x = [1e3, 1e5, 3e8, 2e9]
    law = fit_power_law(x, [7 * value**-0.25 for value in x])
    assert law is not None
    assert (law.factor, law.exponent, law.r_squared, law.points) == pytest.approx((7, -0.25, 1, 4))
    assert law(16) == pytest.approx(3.5)


def test_noise_lowers_r_squared_as_numpy_says() -> None:
    x, y = [1.0, 2, 4, 8, 16], [3.0, 5, 4, 9, 8]
    law = fit_power_law(x, y)
    assert law is not None
    slope, offset = np.polyfit(np.log(x), np.log(y), 1)
    assert (law.exponent, np.log(law.factor)) == pytest.approx((slope, offset))
    assert law.r_squared == pytest.approx(np.corrcoef(np.log(x), np.log(y))[0, 1] ** 2)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2], [1, 2]), ([], []), ([1, 2, 3], [1, 0, 2]), ([5, 5, 5], [1, 2, 3]), ([1, 2, 3], [1, 2, float("nan")])],
)  # fmt: skip
def test_no_law_without_grounds(x: list[float], y: list[float]) -> None:
    assert fit_power_law(x, y) is None
