"""Images and latents to train on, the indexes and caches of them, and the folders of `rfdit encode` and `pack`."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.image_folder import ImageFolder
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.sample import Sample
from rfdit.data.shapes.shards import ShapesShards
from rfdit.data.skips import SkippedSampleError
from rfdit.data.source import Reader
from rfdit.data.tar.source import TarReader
from rfdit.storage.checked import checked_json
from rfdit.storage.disk_cache import DiskCache
from tests.support.data.latent_shards import BPE, DATA, IDENTITY
from tests.support.data.shards import numbered_sample, write_tar
from tests.system.drill.kind import Kind, Samples, digest, digest_files, run
from tests.system.drill.mutations import odd_tree

IMAGES = SampleDecoder(caption_key="txt", label_key="cls")
LATENTS = LatentDecoder(autoencoder=IDENTITY, text_encoder=BPE, text=False)
ENCODE = ["data.shards=shards", *DATA, "data.decoder.label_key=cls"]


def forge_json(file: Path, draw: Random) -> None:
    """An odd value in JSON that has a checksum, under the right one."""
    found = json.loads(file.read_bytes())
    found.pop("checksum", None)
    found = odd_tree(found, draw)
    try:
        file.write_bytes(checked_json(found if isinstance(found, dict) else {"a": found}, indent=None))
    except ValueError:  # lone surrogates
        file.write_bytes(b"{}")


def make_shards() -> None:
    for shard in range(2):
        samples = (
            numbered_sample(n) | {"json": json.dumps({"width": 8, "height": 8, "n": n}).encode()}
            for n in range(4 * shard, 4 * shard + 4)
        )
        write_tar(Path(f"shards/{shard}.tar"), samples)


def samples_of(reader: Reader, shards: list[str], decoder: Any, *, filters: Filters | None = None) -> Samples:
    """All samples of a source, decoded to 8 x 8 pixels, and all counts."""
    source = reader(shards, filters=filters or Filters(), image_sizes=False)
    skipped = dict(source.skipped())
    values: dict[str, Any] = {}

    def decoded() -> Iterator[Sample | SkippedSampleError]:
        for raw in source.samples(range(sum(source.shard_sizes))):
            try:
                yield raw if isinstance(raw, SkippedSampleError) else decoder(raw, (8, 8))
            except SkippedSampleError as error:
                yield error

    for sample in decoded():
        if isinstance(sample, SkippedSampleError):
            skipped[str(sample.reason)] = skipped.get(str(sample.reason), 0) + 1
        else:
            fields = {k: v for k, v in vars(sample).items() if isinstance(v, str | int | torch.Tensor)}
            values[sample.key] = digest(fields)
    return Samples(values, skipped)


def read_tars() -> Samples:
    return samples_of(TarReader(cache="cache"), sorted(map(str, Path("shards").glob("*.tar"))), IMAGES)


def make_indexed() -> None:
    make_shards()
    read_tars()


def read_remote() -> Samples:
    urls = [path.resolve().as_uri() for path in sorted(Path("shards").glob("*.tar"))]
    return samples_of(TarReader(cache="cache"), urls, IMAGES)


def make_sidecars() -> None:
    make_shards()
    run("index", "data.shards=shards")


def make_folder() -> None:
    for label in range(2):
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            file = Path(f"images/class{label}/{number}.{['png', 'jpg', 'webp'][number]}")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


def read_folder() -> Samples:
    return samples_of(ImageFolder(), ["images"], IMAGES, filters=Filters(min_size=4))


def make_sizes() -> None:
    make_folder()
    read_folder()


def make_latents() -> None:
    make_shards()
    run("encode", *ENCODE, "out=latents")


def read_latents() -> Samples:
    shards = sorted(map(str, Path("latents").glob("*.tar")))
    LATENTS.check(shards, (8, 8))
    return samples_of(TarReader(cache="cache"), shards, LATENTS)


def read_remote_latents() -> Samples:
    shards = [path.resolve().as_uri() for path in sorted(Path("latents").glob("*.tar"))]
    LATENTS.check(shards, (8, 8))
    return samples_of(TarReader(cache="cache"), shards, LATENTS)


def encode_again() -> Any:
    run("encode", *ENCODE, "out=latents")
    return digest_files("latents/*.tar", "latents/*.json", "latents/.*")


PACK = ["data=imagenet", "data.shards=images", "samples_per_shard=4", "out=packed"]


def make_packed() -> None:
    make_folder()
    run("pack", *PACK)


def pack_again() -> Any:
    run("pack", *PACK)
    return digest_files("packed/*.tar", "packed/*.json", "packed/.*")


def index_again() -> Any:
    run("index", "data.shards=shards")
    return [file.read_bytes().rstrip() for file in sorted(Path("shards").glob("*.idx"))]


def shapes() -> list[str]:
    return ShapesShards(split="train", samples=24, shards=2, resolution=32)()


def make_shapes() -> None:
    shapes()


def read_shapes() -> Any:
    return [digest(Path(shard).read_bytes()) for shard in shapes()]


def make_entries() -> None:
    cache = DiskCache(folder="entries", max_bytes=1 << 20)
    for number in range(3):
        cache.put(f"entry {number}", lambda file: file.write(bytes(range(200))))


def read_entries() -> Any:
    cache = DiskCache(folder="entries", max_bytes=1 << 20)
    found = []
    for number in range(3):
        with cache.open_or_put(f"entry {number}", lambda file: file.write(bytes(range(200)))) as file:
            found.append(file.read())
    return found


KINDS = [
    # Zeros behind the last sample that is left look like a tar's end.
    Kind("tar shards", make_shards, read_tars, ["shards/*.tar"], guarded=False, blind=["zero"], weight=3),
    Kind("cached indexes of shards", make_indexed, read_tars, ["cache/**/*.npz"], weight=2),
    Kind(
        "indexes beside shards",
        make_sidecars,
        read_remote,
        ["shards/*.idx"],
        forge={"*.idx": forge_json},
        weight=2,
    ),
    Kind("indexes written again", make_sidecars, index_again, ["shards/*.idx"]),
    Kind("folder of images", make_folder, read_folder, ["images/*/*"], guarded=False, weight=2),
    Kind(
        "cached sizes of images",
        make_sizes,
        read_folder,
        ["cache/**/*.npz"],
    ),
    Kind(
        "latents",
        make_latents,
        read_latents,
        ["latents/*"],
        forge={"*.json": forge_json},
        blind=["zero"],
        weight=3,
    ),
    Kind(
        "latents by URL",
        make_latents,
        read_remote_latents,
        ["latents/*"],
        forge={"*.idx": forge_json},
        weight=2,
    ),
    Kind(
        "latents encoded again",
        make_latents,
        encode_again,
        ["latents/*"],
        forge={"*.json": forge_json},
        weight=2,
    ),
    Kind(
        "packed shards packed again",
        make_packed,
        pack_again,
        ["packed/*"],
        forge={"*.json": forge_json},
        weight=2,
    ),
    Kind("drawn shapes", make_shapes, read_shapes, ["cache/**/*.tar"]),
    Kind("entries of a cache", make_entries, read_entries, ["entries/**/*"]),
]
