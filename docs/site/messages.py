"""The reference page of all error messages and warnings, read from the code: a hook of mkdocs."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SHORTEST = 30  # characters; shorter ones are ends of others
INTRODUCTION = """# Messages

The sentences with which rfdit refuses something or warns of it, by the part of the code that says them; `…` stands
for what was given. Most say themselves what to write instead, and [Troubleshooting](../do/troubleshooting.md) says
more about the common ones.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the page."""
    by_package: dict[str, set[str]] = {}
    for path in sorted((ROOT / "rfdit").rglob("*.py")):
        package = path.relative_to(ROOT / "rfdit").parts[0].removesuffix(".py")
        by_package.setdefault(package, set()).update(messages(ast.parse(path.read_text())))
    parts = [INTRODUCTION]
    for package, found in by_package.items():
        if found:
            parts += [f"\n## {package}\n", *(f"- {escaped(message)}" for message in sorted(found))]
    files.append(File.generated(config, "reference/messages.md", content="\n".join(parts) + "\n"))
    return files


def messages(tree: ast.AST) -> Iterator[str]:
    """The texts of exceptions that are raised, and of warnings."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if isinstance(node, ast.Raise) or getattr(call.func, "attr", "") == "warn":
            text = text_of(call.args[0]).strip()
            if len(text.replace("…", "")) >= SHORTEST:
                yield text


def text_of(node: ast.expr) -> str:
    """A text or an f-string with … for its values; empty for other expressions."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(text_of, values))
        case ast.FormattedValue(
            value=ast.Call(func=ast.Name(id="counted"), args=[_, ast.Constant(value=noun), *plural])
        ):
            return f"… {text_of(plural[0]) if plural else f'{noun}s'}"
        case ast.FormattedValue():
            return "…"
        case _:
            return ""


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|$#" else c for c in " ".join(text.split()))
