"""References on disk: npz files of rfdit, of ADM and of pytorch-fid. No pickle is ever loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.eval.metrics.moments import FeatureMoments
from rfdit.eval.networks.inception import InceptionFeatures
from rfdit.eval.reference.reference import Reference
from rfdit.storage.atomic import write_atomically
from rfdit.storage.checksum import sha256_of

FORMAT = 1  # number of the format of rfdit's own files
ABOUT = ("network", "weights_sha256", "resize", "precision", "data", "data_sha256", "image_size")
# Names of mean and covariance in files from elsewhere, by the network output that they describe.
FOREIGN = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def save_reference(reference: Reference, path: Path) -> None:
    """Writes an npz, atomically: "about" is JSON; mean/OUTPUT, covariance/OUTPUT, features/OUTPUT are arrays."""
    about = {"format": FORMAT} | {name: getattr(reference, name) for name in ABOUT}
    about["counts"] = {output: moments.count for output, moments in reference.moments.items()}
    arrays = {"about": np.array(json.dumps(about))}
    for output, moments in reference.moments.items():
        arrays[f"mean/{output}"] = moments.mean.cpu().numpy()
        arrays[f"covariance/{output}"] = moments.covariance.cpu().numpy()
    for output, features in reference.features.items():
        arrays[f"features/{output}"] = features.cpu().numpy()
    write_atomically(path, lambda file: np.savez(file, **arrays), durable=True)  # type: ignore[arg-type]


def load_reference(path: str) -> Reference:
    """Reads rfdit's own npz, ADM's VIRTUAL_*.npz (mu, sigma, mu_s, sigma_s) or pytorch-fid's (mu, sigma).

    Files from elsewhere do not say with which weights and for which images they were made.
    Raises ValueError for a file that is missing or none of these.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"eval.reference={path} is not a file; rfdit reference data=... makes one")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _own(arrays) if "about" in arrays else _foreign(arrays, file)
    except Exception as error:  # many kinds, for damaged files and for sizes that no memory holds
        raise ValueError(f"eval.reference={path} is not a file of reference statistics: {error}") from None


def _own(arrays: Any) -> Reference:
    about = json.loads(str(arrays["about"]))
    if (number := about.pop("format")) != FORMAT:
        raise ValueError(f"its format is {number}, and this version of rfdit reads {FORMAT}")
    counts, size = about.pop("counts"), about.pop("image_size")
    for number in (*counts.values(), *(() if size is None else size)):
        if type(number) is not int or number < 1:
            raise ValueError(f"it counts {number} images or pixels")
    return Reference(
        **about,
        image_size=None if size is None else (size[0], size[1]),
        moments={
            output: _moments(count, arrays[f"mean/{output}"], arrays[f"covariance/{output}"])
            for output, count in counts.items()
        },
        features={
            name.removeprefix("features/"): _features(arrays[name])
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


def _features(values: np.ndarray) -> Float[Tensor, "n d"]:
    if values.ndim != 2 or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"its features are {values.dtype} of the shape {values.shape}, or not finite")
    return torch.from_numpy(values)


def _moments(count: int | None, mean: np.ndarray, covariance: np.ndarray) -> FeatureMoments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"its mean has the shape {mean.shape} and its covariance {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("its statistics have NaN or infinite numbers")
    return FeatureMoments(count, *(torch.from_numpy(x.astype(np.float64)) for x in (mean, covariance)))
