"""Writes the embedded world as LAION-style tar shards, once."""

import io
import json
import os
import shutil
import tempfile
import zlib
from itertools import pairwise
from pathlib import Path

import webdataset as wds
from PIL import Image

from rfdit.data import scenes
from rfdit.data.scenes import draw_scene, render

VALIDATION_START = 10_000_000  # scene numbers from here on are validation's


class ShapesShards:
    """Shards of `rfdit.data.scenes`, made on first use and kept in a cache folder.

    samples, val_samples: how many of each. shards: over how many tars the training set is spread.
    cache: a folder; by default `rfdit` in $XDG_CACHE_HOME or ~/.cache.
    """

    def __init__(
        self,
        *,
        resolution: int = scenes.SIDE,
        samples: int = 20_000,
        val_samples: int = 512,
        shards: int = 8,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        self.resolution, self.samples, self.val_samples = resolution, samples, val_samples
        self.shards, self.seed = shards, seed
        root = (
            Path(cache)
            if cache
            else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfdit"
        )
        # Named by what made it, so that no other version's pictures are ever read.
        made_by = Path(scenes.__file__).read_bytes() + Path(__file__).read_bytes()
        name = f"shapes-{resolution}px-{samples}-{val_samples}-{shards}-seed{seed}-{zlib.crc32(made_by):08x}"
        self.folder = root / name

    def train_shards(self) -> list[str]:
        return self._made("train")

    def val_shards(self) -> list[str]:
        return self._made("val")

    def _made(self, split: str) -> list[str]:
        if not self.folder.exists():
            self._write()
        return sorted(str(path) for path in self.folder.glob(f"{split}-*.tar"))

    def _write(self) -> None:
        """All shards into a folder of their own, which then takes its name: never half a set."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        try:
            bounds = [self.samples * i // self.shards for i in range(self.shards + 1)]
            for i, (start, stop) in enumerate(pairwise(bounds)):
                self._write_shard(partial / f"train-{i:05d}.tar", range(start, stop))
            validation = range(VALIDATION_START, VALIDATION_START + self.val_samples)
            self._write_shard(partial / "val-00000.tar", validation)
            try:
                partial.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # otherwise another process was faster, with the same bytes
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write_shard(self, path: Path, indices: range) -> None:
        with wds.TarWriter(str(path), mtime=0) as tar:
            for index in indices:
                scene, offsets = draw_scene(self.seed, index)
                png = io.BytesIO()
                picture = Image.fromarray(render(scene, offsets, self.resolution))
                picture.save(png, "png", compress_level=1)
                facts = {"caption": scene.caption, "width": self.resolution, "height": self.resolution}
                tar.write(
                    {
                        "__key__": f"{index:09d}",
                        "png": png.getvalue(),
                        "txt": scene.caption.encode(),
                        "json": json.dumps(facts).encode(),
                    }
                )
