"""Images and sentences as HTML, from the templates of parts.html."""

import base64
import html
import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
from jaxtyping import UInt8
from markupsafe import Markup
from torch import Tensor

from rfdit.image_grid import to_pil

SMOOTH_FROM = 128  # pixels; images with a smaller side are enlarged without smoothing


def words(text: str) -> Markup:
    """Text that is neither HTML nor anything to gradio's own templates."""
    return Markup(html.escape(text).translate({ord(sign): f"&#{ord(sign)};" for sign in "${}`"}))


def _parts() -> Any:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True)
    environment.filters["words"] = words
    return environment.get_template("parts.html").module


PARTS = _parts()


def status(sentence: str, *, kind: str = "", share: float | None = None) -> str:
    """A sentence to the visitor; share: the finished fraction of a bar; kind: error, or done."""
    return str(PARTS.status(sentence, kind, share))


def gallery(images: UInt8[Tensor, "n 3 H W"], names: Sequence[str] = ()) -> str:
    """The images side by side, in the page itself; a click saves those with a name."""
    kind = "pixels" if min(images.shape[-2:]) < SMOOTH_FROM else "smooth"
    shown = [{"url": _url(image), "name": name} for image, name in zip_longest(images, names)]
    return str(PARTS.images(shown, kind))


def _url(image: UInt8[Tensor, "3 H W"]) -> str:
    file = io.BytesIO()
    to_pil(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
