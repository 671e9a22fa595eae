"""Shards of latents of numbered samples: making and reading them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import webdataset

from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.sample import Sample

IDENTITY = {
    "_target_": "rfdit.autoencoder.identity.IdentityAutoencoder",
    "latent_channels": 3,
    "downsampling": 1,
}
BPE = {"_target_": "rfdit.text_encoder.bpe.BPEEncoder", "width": 8, "pooled_width": 8, "length": 6}
# The command line's settings for the same.
DATA = ["data.resolution=8", "autoencoder=identity", "num_workers=0", "accelerator=cpu"]


def settings(shards: Sequence[str], out: Path, **changes: Any) -> dict[str, Any]:
    """A validated configuration; `data__reader={...}` changes what is inside `data`."""
    data = {
        "shards": list(shards),
        "reader": {"_target_": "tests.support.data.list_source.ListReader"},
        "decoder": {
            "_target_": "rfdit.data.decode.SampleDecoder",
            "caption_key": "txt",
            "label_key": "cls",
        },
        "filters": {"_target_": "rfdit.data.filters.Filters"},
        "resolution": 8,
    }
    data |= {
        name.removeprefix("data__"): value for name, value in changes.items() if name.startswith("data__")
    }
    config = {
        "out": str(out),
        "dtype": "auto",
        "batch_size": 2,
        "num_workers": 0,
        "parts": 1,
        "part": 0,
        "accelerator": "cpu",
        "data": data,
        "autoencoder": IDENTITY,
        "text_encoder": None,
        "auxiliary": None,
    }
    return config | {name: value for name, value in changes.items() if not name.startswith("data__")}


def read(shard: Path, *, text_encoder: dict[str, Any] | None = None) -> list[Sample]:
    """The samples of a shard of latents."""
    decoder = LatentDecoder(autoencoder=IDENTITY, text_encoder=text_encoder)
    raws = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
    return [decoder(raw, (8, 8)) for raw in raws]


def names(folder: Path) -> list[str]:
    """Everything in a folder but locks, hidden files included."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")
