"""Impossible numbers in files of real images and of their statistics are told in one sentence."""

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from rfdit.eval.reference.files import load_reference, save_reference
from rfdit.eval.reference.images import NpzImages
from tests.support.evaluation.tiny_features import reference_of


@pytest.mark.parametrize(
    "shape", [(0, 8, 8, 3), (-1, 8, 8, 3), (2, 0, 8, 3), (2, 1, 70_000, 3), (1, 20_000, 20_000, 3)]
)
def test_an_npz_of_an_impossible_size(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with pytest.raises(
        ValueError, match=r"images\.npz: arr_0 has the shape \(.*\), which no set of images has"
    ):
        NpzImages(path)


def test_statistics_with_impossible_numbers(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    reference = reference_of({"pool": torch.randn(5, 2)})

    def refused(**changes: Any) -> None:
        with np.load(path) as arrays:
            other = tmp_path / "other.npz"
            np.savez(other, **(dict(arrays) | changes))
        with pytest.raises(
            ValueError, match=r"^eval\.reference=.*other\.npz is not a file of reference statistics"
        ):
            load_reference(str(other))

    save_reference(reference, path)
    assert load_reference(str(path)).moments["pool"].count == 5
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
    for count in (math.nan, math.inf, 2.5, True, 0, "5"):
        refused(about=np.array(json.dumps(about | {"counts": {"pool": count}})))
        refused(about=np.array(json.dumps(about | {"image_size": [count, 8]})))
    refused(about=np.array("[]"))
    for value in (math.nan, math.inf):
        refused(**{"features/pool": np.full((5, 2), value, np.float32)})
        refused(**{"mean/pool": np.full(2, value)})
    save_reference(dataclasses.replace(reference, image_size=None), path)
    assert load_reference(str(path)).image_size is None
