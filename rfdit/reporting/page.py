"""The report as one HTML page that needs no other file and no network."""

import base64
from pathlib import Path
from typing import Any

import jinja2


def render_page(**content: Any) -> str:
    """page.html with its style, its script and `content`, whose text is escaped.

    Raises jinja2.UndefinedError for anything that page.html uses and `content` lacks.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return templates.get_template("page.html").render(content)
