"""References on disk: our own npz, ADM's and pytorch-fid's. No pickle is ever loaded."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rfdit.data.cache_folder import write_atomically
from rfdit.eval.inception import InceptionFeatures
from rfdit.eval.moments import Moments
from rfdit.eval.reference_set import Reference
from rfdit.eval.weights_file import sha256_of

FORMAT = 1  # of our own files
# What files from elsewhere call a mean and its covariance, and the output these are of.
FOREIGN = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def save_reference(reference: Reference, path: Path) -> None:
    """Writes an npz, atomically: "about" is JSON, "mean/OUTPUT" and so on are arrays."""
    about = {
        "format": FORMAT,
        "network": reference.network,
        "weights_sha256": reference.weights_sha256,
        "resize": reference.resize,
        "precision": reference.precision,
        "data": reference.data,
        "data_sha256": reference.data_sha256,
        "image_size": reference.image_size,
        "counts": {output: moments.count for output, moments in reference.moments.items()},
    }
    arrays = {"about": np.array(json.dumps(about))}
    for output, moments in reference.moments.items():
        arrays[f"mean/{output}"] = moments.mean.cpu().numpy()
        arrays[f"covariance/{output}"] = moments.covariance.cpu().numpy()
    for output, features in reference.features.items():
        arrays[f"features/{output}"] = features.cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through memory, since numpy closes what it writes a zip to.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_reference(path: str, *, setting: str = "eval.reference") -> Reference:
    """Reads our own npz, ADM's VIRTUAL_*.npz (mu, sigma, mu_s, sigma_s) or pytorch-fid's (mu, sigma).

    Files from elsewhere do not say with which weights and for which images they were made.
    Raises ValueError, naming `setting`, for a file that is missing or none of these.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{setting}={path}: there is no such file; python -m rfdit.eval.reference data=... makes one"
        )
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _own(arrays) if "about" in arrays else _foreign(arrays, file)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{setting}={path} is no file of reference statistics: {error}") from None


def _own(arrays: Any) -> Reference:
    about = json.loads(str(arrays["about"]))
    if about.pop("format") != FORMAT:
        raise ValueError("it was written by another version of rfdit")
    counts, size = about.pop("counts"), about.pop("image_size")
    return Reference(
        **about,
        image_size=None if size is None else (size[0], size[1]),
        moments={
            output: _moments(count, arrays[f"mean/{output}"], arrays[f"covariance/{output}"])
            for output, count in counts.items()
        },
        features={
            name.partition("/")[2]: torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith("features/")
        },
    )


def _foreign(arrays: Any, file: Path) -> Reference:
    moments = {
        output: _moments(None, arrays[mean], arrays[covariance])
        for output, (mean, covariance) in FOREIGN.items()
        if mean in arrays and covariance in arrays
    }
    if "pool" not in moments:
        raise ValueError(f"it has {', '.join(arrays.files)}, and statistics are mu and sigma")
    return Reference(
        network=InceptionFeatures.name,
        weights_sha256=None,
        resize=None,
        precision=None,
        data=file.name,
        data_sha256=sha256_of(file),
        image_size=None,
        moments=moments,
    )


def _moments(count: int | None, mean: np.ndarray, covariance: np.ndarray) -> Moments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"its mean has the shape {mean.shape} and its covariance {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("its statistics have NaN or infinite numbers")
    return Moments(count, *(torch.from_numpy(x.astype(np.float64)) for x in (mean, covariance)))
