"""The embedded data set on disk: LAION-style tar shards, rendered once into a cache folder."""

import hashlib
import io
import json
import random
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from webdataset import TarWriter

from rfdit.data.shapes import scenes
from rfdit.limits import Count, Fraction, Seed
from rfdit.storage.atomic import write_folder_atomically
from rfdit.storage.disk_cache import cache_root
from rfdit.storage.finished import is_finished, write_finished
from rfdit.storage.locks import locked

SPLITS = ("train", "validation")


class ShapesShards:
    """Tar shards of captioned scenes, written by the first call.

    split: train or validation, different draws of the same distribution, without held-out scenes.
    samples, shards: number of samples, and of files.
    resolution: a multiple of 32.
    one_thing: probability of a scene with a single thing.
    seed: seed of the draws, independent of the run's seed: runs compare best on the same images.
    cache: folder for the shards; None is `cache_root()`.

    Raises ValueError for an unknown split, or another resolution.
    """

    def __init__(
        self,
        *,
        split: str,
        samples: Count,
        shards: Count,
        resolution: Count,
        one_thing: Fraction = 0.5,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split} is unknown; use {' or '.join(SPLITS)}")
        if resolution <= 0 or resolution % scenes.SIDE:
            raise ValueError(
                f"data.resolution={resolution}: shapes are drawn at a multiple of {scenes.SIDE} pixels"
            )
        self.split, self.samples, self.shards = split, samples, shards
        self.resolution, self.one_thing, self.seed = resolution, one_thing, seed
        self.cache = cache_root() if cache is None else Path(cache).expanduser()

    @property
    def folder(self) -> Path:
        """The folder of the shards, named after all they depend on: the settings and the code that draws."""
        settings = [self.split, self.samples, self.shards, self.resolution, self.one_thing, self.seed]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for source in (scenes.__file__, __file__):
            digest.update(Path(source).read_bytes())
        return self.cache / f"shapes-{self.split}-{digest.hexdigest()[:12]}"

    def __call__(self) -> list[str]:
        """The shards' paths, in order.

        The folder gets its name when it is complete, so processes may write it at the same time. A shard that
        has been damaged since is written again.
        """
        folder = self.folder
        if not folder.is_dir():
            write_folder_atomically(folder, self._write)
        paths = self._paths(folder)
        if not all(map(is_finished, paths)):
            with locked(folder / "lock"):
                self._write(folder)
        return [str(path) for path in paths]

    def _paths(self, folder: Path) -> list[Path]:
        return [folder / f"{shard:05d}.tar" for shard in range(self.shards)]

    def _write(self, folder: Path) -> None:
        """Write the shards that are missing or damaged."""
        for shard, path in enumerate(self._paths(folder)):
            if not is_finished(path):
                write_finished(path, partial(self._fill, shard))

    def _fill(self, shard: int, file: BinaryIO) -> None:
        # A fixed time, so that equal settings give equal bytes.
        with TarWriter(file, encoder=False, mtime=0) as tar:
            for index in range(shard, self.samples, self.shards):
                tar.write(self._sample(index))

    def _sample(self, index: int) -> dict[str, str | bytes]:
        """The files of one sample, a function of (seed, split, index)."""
        scene, offsets = scenes.draw(
            random.Random(f"{self.seed}/{self.split}/{index}"), one_thing=self.one_thing
        )
        key = f"{index:09d}"
        png = io.BytesIO()
        image = Image.fromarray(scenes.render(scene, offsets, self.resolution))
        image.save(png, format="png", compress_level=1)
        about = {
            "key": key,
            "caption": scene.caption,
            "width": self.resolution,
            "height": self.resolution,
            "status": "success",
        }
        return {
            "__key__": key,
            "png": png.getvalue(),
            "txt": scene.caption.encode(),
            "json": json.dumps(about).encode(),
        }
