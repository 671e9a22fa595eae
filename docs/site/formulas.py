"""Formulas as MathML, which browsers draw by themselves: a hook of mkdocs.

pymdownx.arithmatex marks `$...$` and `$$...$$`; latex2mathml converts what it has marked.
"""

import re
from html import unescape

from latex2mathml.converter import convert

MARKED = re.compile(
    r'<(span|div) class="arithmatex">\\(?:\((?P<inline>.*?)\\\)|\[(?P<display>.*?)\\\])</\1>', re.DOTALL
)


def as_mathml(marked: re.Match[str]) -> str:
    """The formula of one marked element."""
    display = marked["display"] is not None
    latex = unescape(marked["display"] if display else marked["inline"]).strip()
    math = convert(latex, display="block" if display else "inline")
    return f'<div class="formula">{math}</div>' if display else math


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the HTML of each page."""
    return MARKED.sub(as_mathml, html)
