"""Progress of encoding shards, in shards and images per second."""

from types import TracebackType

from rfdit.counted import counted
from rfdit.progress import ProgressDisplay


class EncodeProgress:
    """Shards and images per second of one process.

    shards: the number of shards of this process.
    shown: False for all processes but one, since all have about equally many shards.
    """

    def __init__(self, *, shards: int, shown: bool) -> None:
        self.shards, self.shown = shards, shown
        self.start(finished=0)

    def __enter__(self) -> "EncodeProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.close()

    def start(self, *, finished: int) -> None:
        """Start the clock; `finished` shards already existed."""
        self._display = ProgressDisplay(
            "encoding", total=self.shards, unit="shards", completed=finished, shown=self.shown
        )
        self._whole, self._images = finished, 0

    def advance(self, images: int, part: float) -> None:
        """Count more encoded images, with which this part of the current shard is done."""
        self._images += images
        self._display.update(self._whole + part, self._note)

    def next_shard(self) -> None:
        """Count the current shard as done."""
        self._whole += 1
        self._display.update(self._whole, self._note, now=True)

    @property
    def _note(self) -> str:
        return f"{counted(self._images, 'image')}  {self._images / self._display.elapsed:.0f} img/s"
