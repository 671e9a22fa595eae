"""Pairs of images of one caption, of which one is preferred: KEY.win.jpg, KEY.lose.jpg, KEY.txt."""

from dataclasses import dataclass
from typing import cast

from rfdit.data.decode import decode_image, find_captions, find_label, find_micro, listed_files, measured
from rfdit.data.pixels import IMAGE_EXTENSIONS
from rfdit.data.sample import RawSample, Sample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.micro import Fields


@dataclass(frozen=True, kw_only=True)
class PreferenceDecoder:
    """Decodes a pair: both images, resized and centre-cropped alike, their caption and their label. A `PairDecoder`.

    preferred, rejected: what the names of the two images have between key and extension, as in KEY.win.jpg. Without
        `rejected`, samples are the preferred images alone.
    caption_key, label_key, draw_caption, micro: those of `SampleDecoder`; micro-conditioning is that of the preferred
        image.

    A call raises SkippedSampleError with the reason for a sample that cannot be used, such as half a pair.
    """

    preferred: str = "win"
    rejected: str | None = "lose"
    caption_key: str | None = "txt"
    label_key: str | None = None
    draw_caption: bool = False
    micro: Fields | None = None

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        captions = [] if self.caption_key is None else find_captions(raw, self.caption_key)
        label = None if self.label_key is None else find_label(raw, self.label_key)
        preferred = self._image(raw, self.preferred)
        rejected = None if self.rejected is None else self._image(raw, self.rejected)
        micro = None if self.micro is None else find_micro(raw, self.micro, lambda: measured(preferred), size)
        return Sample(
            key=cast(str, raw["__key__"]),
            image=decode_image(preferred, size),
            rejected=None if rejected is None else decode_image(rejected, size),
            caption=captions[0] if captions else None,
            captions=captions if self.draw_caption else (),
            label=label,
            micro=micro,
        )

    def _image(self, raw: RawSample, name: str) -> bytes:
        """The encoded image of this name; raises SkippedSampleError if there is none."""
        for extension in IMAGE_EXTENSIONS:
            if (found := raw.get(f"{name}.{extension}")) is not None:
                return cast(bytes, found)
        raise SkippedSampleError(
            SkipReason.INCOMPLETE_PAIR, f"there is no {name}.jpg; its files are {listed_files(raw)}"
        )
