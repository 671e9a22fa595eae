"""Averages of other lengths from snapshots, against those that were tracked all along."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rfdit.ema import PowerFunction, Snapshots
from rfdit.ema.profiles import power_of
from rfdit.ema.reconstruction import Fit, PowerProfile, combine, fit, inner_products
from rfdit.ema.snapshots import Snapshot, read_snapshots

STEPS, WIDTH = 2000, 500


def profile_of(std: float, end: float) -> PowerProfile:
    return PowerProfile(power=power_of(std, setting="std"), end=end)


def step_weights(std: float, end: int) -> Tensor:
    """(STEPS,) the weight of each step in an average that ends at one of them."""
    t = torch.arange(STEPS + 1, dtype=torch.float64).clamp(max=end) / end
    return (t ** (power_of(std, setting="std") + 1)).diff()


@pytest.fixture(scope="module")
def walk() -> Tensor:
    """(STEPS, WIDTH) weights that move like those of a network: a random walk."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, WIDTH, generator=generator, dtype=torch.float64).cumsum(0) / STEPS**0.5


def tracked(walk: Tensor, std: float, end: int) -> Tensor:
    """The average as training would have kept it, update by update."""
    profile, average = PowerFunction(std=std), torch.zeros(WIDTH, dtype=torch.float64)
    for step in range(1, end + 1):
        average.lerp_(walk[step - 1], profile.rate(step))
    return average


def snapshots(count: int) -> list[tuple[float, int]]:
    """(std, step) of EDM2's two averages, evenly stored."""
    return [(std, (i + 1) * STEPS // count) for std in (0.05, 0.10) for i in range(count)]


def rebuilt(walk: Tensor, std: float, end: int, count: int) -> tuple[Tensor, Fit]:
    stored = snapshots(count)
    found = fit([profile_of(s, t) for s, t in stored], profile_of(std, end))
    parts = torch.stack([step_weights(s, t) @ walk for s, t in stored])
    return torch.from_numpy(found.coefficients) @ parts, found


def test_inner_products_are_integrals() -> None:
    pairs = [profile_of(0.05, 300.0), profile_of(0.10, 700.0), profile_of(0.2, 1000.0)]
    t = (np.arange(1_000_000) + 0.5) / 1000  # midpoints
    values = np.stack([(p.power + 1) * t**p.power / p.end ** (p.power + 1) * (t < p.end) for p in pairs])
    np.testing.assert_allclose(inner_products(pairs, pairs), values @ values.T / 1000, rtol=1e-6)


def test_inner_products_of_long_runs_neither_overflow_nor_vanish() -> None:
    ends = [profile_of(0.01, 1e3), profile_of(0.01, 1e7)]
    products = inner_products(ends, ends)
    assert np.isfinite(products).all()
    assert (np.diag(products) > 0).all()


@pytest.mark.parametrize("std", [0.07, 0.12, 0.15])
def test_a_rebuilt_average_is_the_tracked_one(walk: Tensor, std: float) -> None:
    """The error is what the fit missed of the profile, applied to the walk, and falls with the number of snapshots."""
    exact = tracked(walk, std, STEPS)
    torch.testing.assert_close(exact, step_weights(std, STEPS) @ walk)
    errors = []
    for count in (4, 16):
        average, found = rebuilt(walk, std, STEPS, count)
        mixed = sum(c * step_weights(s, t) for c, (s, t) in zip(found.coefficients, snapshots(count)))
        missed = step_weights(std, STEPS) - mixed
        torch.testing.assert_close(exact - average, missed @ walk, rtol=1e-6, atol=1e-9)
        # The fit knows continuous profiles; a walk of 2,000 steps is nearly one.
        assert found.error == pytest.approx(
            (missed.norm() / step_weights(std, STEPS).norm()).item(), rel=0.05
        )
        errors.append(((exact - average).norm() / exact.norm()).item())
    assert errors[0] < 2e-2
    assert errors[1] < errors[0] / 20
    # Far nearer than the nearest stored average is.
    nearest = min((exact - tracked(walk, s, STEPS)).norm() for s in (0.05, 0.10))
    assert errors[1] * exact.norm() < nearest / 20


@pytest.mark.parametrize("std", [0.02, 0.12, 0.25])
def test_what_does_not_change_is_rebuilt_exactly(std: float) -> None:
    """Weights are mostly where they began; a sum of coefficients of 0.998 would shrink that."""
    average, found = rebuilt(torch.full((STEPS, WIDTH), 20.0, dtype=torch.float64), std, STEPS, 4)
    torch.testing.assert_close(average, torch.full_like(average, 20.0), rtol=1e-10, atol=0.0)
    free = [profile_of(s, t) for s, t in snapshots(4)]
    target = inner_products(free, [profile_of(std, STEPS)])[:, 0]
    best = np.linalg.solve(inner_products(free, free), target)
    unbound = 1 - best @ target / inner_products([profile_of(std, STEPS)], [profile_of(std, STEPS)])[0, 0]
    # It costs little: the free fit, which is the nearest there is, misses nearly as much.
    assert unbound**0.5 <= found.error < 1.5 * unbound**0.5


def test_a_rebuilt_average_may_end_at_an_earlier_snapshot(walk: Tensor) -> None:
    exact = tracked(walk, 0.12, STEPS * 12 // 16)
    average, found = rebuilt(walk, 0.12, STEPS * 12 // 16, 16)
    assert ((exact - average).norm() / exact.norm()).item() < 2e-3
    assert found.error < 0.01


@pytest.mark.parametrize("count", [8, 64])
def test_a_stored_average_is_its_snapshot(count: int) -> None:
    stored = snapshots(count)
    for i in (0, count // 2, 2 * count - 1):
        std, end = stored[i]
        found = fit([profile_of(s, t) for s, t in stored], profile_of(std, end))
        np.testing.assert_allclose(found.coefficients, np.eye(len(stored))[i], atol=1e-9)
        assert found.error < 1e-6


def test_two_averages_of_one_length_share_their_weight() -> None:
    """A singular system has a least-squares answer too."""
    found = fit([profile_of(0.1, 100.0)] * 2, profile_of(0.1, 100.0))
    np.testing.assert_allclose(found.coefficients, [0.5, 0.5], atol=1e-9)


def write(folder: Path, step: int, weights: dict[str, Tensor], std: float = 0.1) -> Snapshot:
    snapshot = Snapshot(profile="power", std=std, updates=step, step=step)
    Snapshots(folder=str(folder), every_n_steps=1).write(snapshot, weights, writes=True)
    return snapshot


def test_snapshots_are_float16_and_say_what_they_are(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4).t(), "b": torch.randn(5)}
    snapshot = write(tmp_path, 7, weights, std=0.1 + 1e-17)
    (path,) = tmp_path.iterdir()
    assert path.name == "power_00000007.safetensors"
    assert read_snapshots(tmp_path) == {path: snapshot}
    stored = load_file(path)
    assert {name: value.dtype for name, value in stored.items()} == {"a": torch.float16, "b": torch.float16}
    assert all(torch.equal(stored[name], value.half()) for name, value in weights.items())


def test_a_failed_write_leaves_the_old_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 7, {"a": torch.ones(3)})
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def fails(tensors: object, metadata: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("rfdit.ema.snapshots.save", fails)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 7, {"a": torch.zeros(3)})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_tensors_are_summed_beyond_float16(tmp_path: Path) -> None:
    values = [torch.randn(50) for _ in range(3)]
    for step, value in enumerate(values):
        write(tmp_path, step, {"a": value})
    coefficients = [2.5, -1.25, 1e-3]
    combined = dict(combine(sorted(tmp_path.iterdir()), coefficients))
    expected = sum(c * v.half().double() for c, v in zip(coefficients, values))
    assert torch.equal(combined["a"], expected.float())  # type: ignore[union-attr]


def test_snapshots_of_two_networks_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, 1, {"a": torch.ones(3)})
    write(tmp_path, 2, {"b": torch.ones(3)})
    with pytest.raises(ValueError, match="are snapshots of different networks"):
        dict(combine(sorted(tmp_path.iterdir()), [1.0, 1.0]))


def test_weights_beyond_float16_are_not_an_average(tmp_path: Path) -> None:
    write(tmp_path, 1, {"a": torch.tensor([1e5])})
    with pytest.raises(ValueError, match=r"power_00000001\.safetensors is not finite in a"):
        dict(combine(sorted(tmp_path.iterdir()), [1.0]))


def test_other_files_are_not_snapshots(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as a snapshot"):
        read_snapshots(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as a snapshot"):
        read_snapshots(tmp_path)


def test_a_flipped_byte_of_a_snapshot_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1, {"a": torch.linspace(1, 2, 50), "b": torch.tensor(3.0)})
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # a last bit, of one of a's values or of b's
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"power_00000001\.safetensors is damaged: its weights do not match"):
        dict(combine([path], [1.0]))
