"""Pairs of images of one caption, of which one is preferred: KEY.win.jpg, KEY.lose.jpg, KEY.txt."""

from dataclasses import dataclass, replace
from typing import cast

from rfdit.data.decode import SampleDecoder, decode_image, listed_files
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
        single = SampleDecoder(
            caption_key=self.caption_key,
            label_key=self.label_key,
            draw_caption=self.draw_caption,
            micro=self.micro,
        )
        preferred = self._image(raw, self.preferred)
        if self.rejected is None:
            return single.decode(raw, preferred, size)
        rejected = self._image(raw, self.rejected)  # before the other is decoded in vain
        return replace(single.decode(raw, preferred, size), rejected=decode_image(rejected, size))

    def _image(self, raw: RawSample, name: str) -> bytes:
        """The encoded image of this name; raises SkippedSampleError if there is none."""
        for extension in IMAGE_EXTENSIONS:
            if (found := raw.get(f"{name}.{extension}")) is not None:
                return cast(bytes, found)
        raise SkippedSampleError(
            SkipReason.INCOMPLETE_PAIR, f"there is no {name}.jpg; its files are {listed_files(raw)}"
        )
