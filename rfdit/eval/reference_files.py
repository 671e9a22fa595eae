"""References on disk: our own npz, ADM's and pytorch-fid's. No pickle is ever loaded."""

from pathlib import Path

from rfdit.eval.reference_set import Reference


def save_reference(reference: Reference, path: Path) -> None:
    """Writes an npz, atomically."""
    raise NotImplementedError


def load_reference(path: str, *, setting: str = "eval.reference") -> Reference:
    """Reads our own npz, ADM's VIRTUAL_*.npz (mu, sigma, mu_s, sigma_s) or pytorch-fid's (mu, sigma).

    Raises ValueError, naming `setting`, for a file that is missing or none of these.
    """
    raise NotImplementedError
