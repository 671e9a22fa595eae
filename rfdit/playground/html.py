"""What the page shows of pictures, progress and errors, as HTML."""

import base64
import html
import io
from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from rfdit.grid import to_pil
from rfdit.playground.painter import Glimpse, Painting

SMOOTH_FROM = 128  # pixels: pictures of a smaller side are enlarged without smoothing


def png(image: Image.Image) -> bytes:
    """A picture without loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pictures(images: UInt8[Tensor, "n 3 H W"], names: Sequence[str] = ()) -> str:
    """The pictures beside each other, in the page itself; those with a name can be saved by a click."""
    kind = "pixels" if min(images.shape[-2:]) < SMOOTH_FROM else "smooth"
    shown = []
    for i, image in enumerate(images):
        data = f"data:image/png;base64,{base64.b64encode(png(to_pil(image))).decode()}"
        tag = f'<img class="{kind}" src="{data}" alt="picture {i + 1}">'
        shown.append(f'<a href="{data}" download="{names[i]}" title="save it">{tag}</a>' if names else tag)
    return f'<div class="pictures n{min(len(shown), 4)}">{"".join(shown)}</div>'


def nothing_yet() -> str:
    return '<div class="pictures none">The pictures appear here.</div>'


def progress(glimpse: Glimpse) -> str:
    """A bar, and where it stands in words."""
    label = f"step {glimpse.step} of {glimpse.steps}, t = {glimpse.t:.2f}"
    return f'<div class="status">{label}<progress max="1" value="{glimpse.share:.3f}"></progress></div>'


def finished(painting: Painting) -> str:
    n = len(painting.images)
    what = "1 picture" if n == 1 else f"{n} pictures"
    cost = f"{painting.evaluations} evaluations of the velocity in {painting.seconds:.1f} s"
    return f'<div class="status done">{what}: {cost}</div>'


def message(sentence: str) -> str:
    """A plain word to the visitor."""
    return f'<div class="status">{text(sentence)}</div>'


def error(sentence: str) -> str:
    return f'<div class="status error" role="alert">{text(sentence)}</div>'


def text(words: str) -> str:
    """Words that are no HTML, and nothing to the page's own templates either."""
    return html.escape(words).translate({ord(sign): f"&#{ord(sign)};" for sign in "${}`"})
