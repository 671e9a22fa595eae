"""What a visitor has made, and with which settings."""

import itertools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rfdit.grid import to_pil
from rfdit.playground.html import png
from rfdit.playground.painter import Painting

# Of the table, with their widths in pixels.
COLUMNS = {
    "no.": 50,
    "prompt or class": 240,
    "negative": 160,
    "seed": 120,
    "pictures": 90,
    "solver": 100,
    "steps": 70,
    "shift": 70,
    "guidance": 130,
    "scale": 70,
    "seconds": 90,
}


@dataclass(frozen=True)
class History:
    """The newest paintings, newest first, numbered from 1 on; their pictures are files, for the page to show.

    most: how many paintings are kept. made: how many there were.
    """

    folder: Path
    most: int = 24
    made: int = 0
    paintings: tuple[Painting, ...] = ()
    files: tuple[tuple[Path, ...], ...] = ()

    def added(self, painting: Painting) -> "History":
        """With one painting more; the oldest goes, with its files, if there are too many."""
        files = []
        for image in painting.images:
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".png", delete=False) as file:
                file.write(png(to_pil(image)))
            files.append(Path(file.name))
        kept = self.most - 1
        for path in itertools.chain(*self.files[kept:]):
            path.unlink(missing_ok=True)
        return replace(
            self,
            made=self.made + 1,
            paintings=(painting, *self.paintings[:kept]),
            files=(tuple(files), *self.files[:kept]),
        )

    def gallery(self) -> list[tuple[str, str]]:
        """(file, caption) of every picture."""
        return [(str(file), f"{self.made - i}") for i, files in enumerate(self.files) for file in files]

    def painting_of(self, picture: int) -> Painting:
        """The painting that a picture of the gallery belongs to."""
        return [painting for painting in self.paintings for _ in painting.images][picture]

    def table(self) -> list[list[str]]:
        """A row of words for each painting, under COLUMNS."""
        return [[str(self.made - i), *_words(painting)] for i, painting in enumerate(self.paintings)]


def _words(painting: Painting) -> list[str]:
    s = painting.settings
    scale = "" if s.scale is None else f"{s.scale:g}"
    return [
        *(str(s.given), s.negative or "", str(s.seed), str(s.count)),
        *(s.solver, str(s.steps), f"{s.shift:g}", s.guidance, scale, f"{painting.seconds:.1f}"),
    ]
