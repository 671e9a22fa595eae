"""Statistics of real images, and images to compute them of."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from rfdit.eval.reference.files import load_reference, save_reference
from tests.support.evaluation.tiny_features import reference_of
from tests.system.drill.kind import Kind, digest, run
from tests.system.drill.mutations import odd_tree

TINY = [
    "network._target_=tests.support.evaluation.tiny_features.TinyFeatures", "network.outputs=[pool]", "num_workers=0",
    "out=made.npz", "accelerator=cpu",
]  # fmt: skip


def drawn() -> torch.Tensor:
    return torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


def read_reference() -> Any:
    found = load_reference("real.npz")
    moments = {name: (m.count, m.mean, m.covariance) for name, m in found.moments.items()}
    return found.settings(), digest(moments), digest(found.features)


def make_foreign() -> None:
    features = drawn().numpy()
    np.savez("real.npz", mu=features.mean(0), sigma=np.cov(features.T))


def forge_reference(file: Path, draw: Random) -> None:
    """Arrays of other shapes, types and values, and other settings."""
    with np.load(file) as found:
        arrays = {name: found[name] for name in found.files}
    name = draw.choice(sorted(arrays))
    if name == "about":
        arrays[name] = np.array(json.dumps(odd_tree(json.loads(str(arrays[name])), draw)))
    else:
        x = arrays[name]
        arrays[name] = draw.choice(
            [x * np.nan, x[:0], x.astype("U"), x.reshape(-1), np.array(3), x + 1j, x[..., :-1]]
        )
    np.savez(file, **arrays)


def make_npz_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
    np.savez("images.npz", arr_0=pixels)
    np.savez_compressed("packed.npz", arr_0=pixels)


def read_npz_images(name: str) -> Any:
    run("reference", f"images={name}", *TINY)
    found = load_reference("made.npz")
    return digest({n: (m.count, m.mean, m.covariance) for n, m in found.moments.items()})


KINDS = [
    Kind(
        "reference statistics",
        lambda: save_reference(reference_of({"pool": drawn()}), Path("real.npz")),
        read_reference,
        ["real.npz"],
        forge={"*.npz": forge_reference},
        weight=2,
    ),
    Kind(
        "reference statistics of others",
        make_foreign,
        read_reference,
        ["real.npz"],
        guarded=False,
        forge={"*.npz": forge_reference},
    ),
    Kind(
        "array of images",
        make_npz_images,
        lambda: read_npz_images("images.npz"),
        ["images.npz"],
        guarded=False,
    ),
    Kind(
        "compressed array of images",
        make_npz_images,
        lambda: read_npz_images("packed.npz"),
        ["packed.npz"],
        guarded=False,
    ),
]
