"""The results of a visitor, with their settings."""

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from PIL import Image, ImageOps

from rfdit.image_grid import to_pil
from rfdit.playground.model import Result

THUMBNAIL = 128  # pixels of their longer side
MOST_FILES = 4096  # images in the folder, of all visitors together; the oldest go
COLUMNS = (
    *("no.", "prompt or class", "negative", "seed", "images"),
    *("solver", "steps", "shift", "guidance", "scale", "start", "seconds"),
)


@dataclass(frozen=True)
class Entry:
    """A result, with thumbnails as files for the page to show; number: counted from 1."""

    number: int
    result: Result
    files: tuple[Path, ...]

    @property
    def row(self) -> list[str]:
        """The settings under COLUMNS."""
        s, scale = self.result.settings, self.result.settings.scale
        what = [str(self.number), self.result.caption, s.negative or "", str(s.seed), str(s.count)]
        how = [s.solver, str(s.steps), f"{s.shift:g}", s.guidance, "" if scale is None else f"{scale:g}"]
        start = f"t = {s.strength:g}, {s.image.name}" if s.image else "noise"
        return [*what, *how, start, f"{self.result.seconds:.1f}"]


@dataclass(frozen=True)
class History:
    """The newest results, newest first. folder: their files' folder. most: the number of results kept."""

    folder: Path
    most: int = 24
    entries: tuple[Entry, ...] = ()

    def added(self, result: Result) -> "History":
        """The history with one more result; the oldest goes, with its files, if there are too many."""
        files = tuple(self.folder / f"{uuid4().hex}.png" for _ in result.images)
        for file, image in zip(files, map(to_pil, result.images)):
            kind = Image.Resampling.NEAREST if min(image.size) < THUMBNAIL else Image.Resampling.LANCZOS
            ImageOps.contain(image, (THUMBNAIL, THUMBNAIL), kind).save(file)
        kept, gone = self.entries[: self.most - 1], self.entries[self.most - 1 :]
        for file in (file for entry in gone for file in entry.files):
            file.unlink(missing_ok=True)
        _remove_oldest(self.folder)
        number = self.entries[0].number + 1 if self.entries else 1
        return replace(self, entries=(Entry(number, result, files), *kept))

    def gallery(self) -> list[tuple[str, str]]:
        """(thumbnail, caption) of every image."""
        return [(str(file), str(entry.number)) for entry in self.entries for file in entry.files]

    def result_of(self, image: int) -> Result:
        """The result of an image in the gallery."""
        return [entry.result for entry in self.entries for _ in entry.files][image]


def _remove_oldest(folder: Path) -> None:
    """Bound the folder, where gradio leaves copies, and visitors who have left their images."""
    images = list(folder.rglob("*.png"))
    if len(images) > MOST_FILES:
        for image in sorted(images, key=lambda path: path.stat().st_mtime)[:-MOST_FILES]:
            image.unlink(missing_ok=True)
