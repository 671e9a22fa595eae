"""The embedded world on disk: LAION-style tar shards, drawn once and kept in a cache folder."""

import hashlib
import io
import json
import random
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from webdataset import TarWriter

from rfdit.data import scenes
from rfdit.data.cache_folder import cache_root

SPLITS = ("train", "validation")


class ShapesShards:
    """Tar shards of captioned scenes, written at the first call that finds none.

    split: train or validation, different draws of the same training scenes; neither has a held-out one.
    samples, shards: how many, over how many files.
    resolution: a multiple of 32.
    one_thing: the share of scenes with a single thing.
    seed: of the draws. It is no matter of the run's seed: runs compare best on the same pictures.
    cache: folder for the shards; None is `cache_root()`.

    Raises ValueError for an unknown split, or another resolution.
    """

    def __init__(
        self,
        *,
        split: str,
        samples: int,
        shards: int,
        resolution: int,
        one_thing: float = 0.5,
        seed: int = 0,
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
        """Named after everything that the shards depend on: the settings and the code that draws."""
        settings = [self.split, self.samples, self.shards, self.resolution, self.one_thing, self.seed]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for source in (scenes.__file__, __file__):
            digest.update(Path(source).read_bytes())
        return self.cache / f"shapes-{self.split}-{digest.hexdigest()[:12]}"

    def __call__(self) -> list[str]:
        """The shards' paths, in order.

        They are written beside their folder, which gets its name when all is there: a folder of
        that name is complete, and processes that write at the same time do no harm.
        """
        folder = self.folder
        if not folder.is_dir():
            self.cache.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=self.cache))
            try:
                self._write(unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return sorted(str(shard) for shard in folder.glob("*.tar"))

    def _write(self, folder: Path) -> None:
        for shard in range(self.shards):
            # A fixed time, so that equal settings give equal bytes.
            with TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False, mtime=0) as tar:
                for index in range(shard, self.samples, self.shards):
                    tar.write(self._sample(index))

    def _sample(self, index: int) -> dict[str, str | bytes]:
        """The files of one sample, a function of (seed, split, index)."""
        scene, offsets = scenes.draw(
            random.Random(f"{self.seed}/{self.split}/{index}"), one_thing=self.one_thing
        )
        key = f"{index:09d}"
        png = io.BytesIO()
        picture = Image.fromarray(scenes.render(scene, offsets, self.resolution))
        picture.save(png, format="png", compress_level=1)
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
