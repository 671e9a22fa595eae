"""Reference pages, made from the code when the site is built: a hook of mkdocs.

Commands and settings come from `conf/` with the comments that stand there, the API from docstrings. So nothing on
these pages can be out of date, and a new YAML or module is on them without being named here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from rfdit.__main__ import COMMANDS
from rfdit.config.described import CONFIG_DIR as CONF
from rfdit.config.described import Setting, defaults_of, header, settings_of

ROOT = Path(__file__).parents[2]
SHORT = 60  # characters of a value that a table shows
FIRST = "---\nsearch: {boost: 2}\n---\n\n"  # what a setting is comes before where it is used


def on_config(config: Any) -> Any:
    """Put the pages that this hook makes into the navigation."""
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [
                {"Commands": "reference/commands.md"},
                {"Settings": ["reference/settings/index.md", *({g: settings_page(g)} for g in groups())]},
                {"Python": ["reference/python/index.md", *({n: api_page(n)} for n in api_modules())]},
                {"Messages": "reference/messages.md"},
                *section["Reference"],
            ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    pages = {"reference/commands.md": commands(), "reference/settings/index.md": all_groups()}
    pages |= {settings_page(group): group_text(group) for group in groups()}
    pages |= {"reference/python/index.md": all_modules()}
    pages |= {api_page(name): api_text(name, modules) for name, modules in api_modules().items()}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=FIRST + content))
    return files


# Settings


def groups() -> list[str]:
    """All groups of options: model, sampler, sampler/grid, ..."""
    return sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."})


def settings_page(group: str) -> str:
    return f"reference/settings/{group.replace('/', '_')}.md"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def about(text: str) -> str:
    """The comment at the top of a file, with its example commands."""
    paragraph, examples = header(text)
    return escaped(paragraph) + ("\n\n```bash\n" + "\n".join(examples) + "\n```" if examples else "")


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is, with links for the pages that it names."""
    text = re.sub(r"([*<>\[\]|$\\])", r"\\\1", text)
    return re.sub(r"docs/(\w+)\.md", r"[\1](/docs/\1.md)", text)


def package(group: str, text: str) -> str:
    """The prefix of a group's settings, with its dot."""
    named = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    name = named[1] if named else group.replace("/", ".")
    return "" if name == "_global_" else f"{name}."


def table(rows: list[Setting]) -> str:
    """The settings as a table; classes are linked to the API."""
    if not rows:
        return ""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for row in rows:
        target = re.fullmatch(r"rfdit[\w.]+", row.default) if row.name.endswith("_target_") else None
        value = row.default if len(row.default) <= SHORT else row.default[: SHORT - 1] + "…"
        shown = f"`{value}`" if value else ""
        if target:
            shown = f'<autoref optional identifier="{target[0]}"><code>{target[0]}</code></autoref>'
        lines.append(f"| `{row.name}` | {shown.replace('|', chr(92) + '|')} | {escaped(row.meaning)} |")
    return stacked(lines)


def stacked(lines: list[str]) -> str:
    """A table of texts, whose cells stand below each other on narrow pages; see site.css."""
    return "\n".join(['<div class="stacked" markdown="1">', "", *lines, "", "</div>", ""])


def linked(text: str, page: str) -> str:
    """The text with links that are relative to its page."""
    up = "../" * page.count("/")
    return text.replace("](/docs/", f"]({up}")


def group_text(group: str) -> str:
    parts = [f"# {group}\n", f"Options of the group `{group}`, chosen by `{group}=OPTION`.\n"]
    for option in options(group):
        text = (CONF / group / f"{option}.yaml").read_text()
        rows = [*chosen(group, text), *settings_of(text, package(group, text))]
        parts += [f"## {group}={option} {{ #{option} }}\n", about(text) + "\n", table(rows) + "\n"]
    return linked("\n".join(parts), settings_page(group))


def chosen(group: str, text: str) -> Iterator[Setting]:
    """The options of other groups with which an option begins."""
    for inner, option, _ in composed(text):
        yield Setting(f"{group}/{inner}" if f"{group}/{inner}" in groups() else inner, option, "a group")


def composed(text: str) -> Iterator[tuple[str, str, str]]:
    """(group, option, comment) of each entry in the `defaults` of a YAML file; the option of other entries is empty."""
    for name, option, comment in defaults_of(text):
        group = name.partition("@")[0].removeprefix("override ").lstrip("/")
        yield group, "null" if option is None else option, comment


def all_groups() -> str:
    lines = [
        "# Settings\n",
        "A group is a folder of `conf/`, with one YAML file for each option. "
        "`model=dit` on the command line chooses an option, and `model.qk_norm=true` changes a setting of the "
        "option that is chosen. These pages are made from the files and their comments. "
        "Settings that belong to no group are on the page of [their command](../commands.md); "
        "`python train.py --cfg job` prints all of them with their values.\n",
        "| group | options |",
        "| --- | --- |",
    ]
    for group in groups():
        page = settings_page(group).removeprefix("reference/settings/")
        named = ", ".join(f"[`{option}`]({page}#{option})" for option in options(group))
        lines.append(f"| [`{group}`]({page}) | {named} |")
    return "\n".join(lines)


# Commands


def commands() -> str:
    parts = [
        "# Commands\n",
        "`rfdit COMMAND [GROUP=OPTION] [SETTING=VALUE]`. `python train.py` is `rfdit train`, and "
        "`python sample.py` is `rfdit sample`. `rfdit COMMAND --help` prints this in a terminal.\n",
        "| command | purpose |",
        "| --- | --- |",
        *(f"| [`{name}`](#rfdit-{name}) | {what} |" for name, what in COMMANDS.items()),
        "",
    ]
    for name in COMMANDS:
        text = (CONF / f"{name}.yaml").read_text()
        parts += [
            f"## rfdit {name}\n",
            about(text) + "\n",
            defaults(text),
            table(list(settings_of(text))),
            "",
        ]
    return linked("\n".join(parts), "reference/commands.md")


def defaults(text: str) -> str:
    """The groups that a command composes, with the option that each begins with."""
    rows = []
    for name, option, comment in composed(text):
        if name in groups():
            page = settings_page(name).removeprefix("reference/")
            rows.append(f"| [`{name}`]({page}) | `{option}` | {escaped(comment)} |")
        elif name in COMMANDS:
            rows.append(f"| those of [`{name}`](#rfdit-{name}) | | |")
    return stacked(["| group | option | |", "| --- | --- | --- |", *rows]) if rows else ""


# Python API


def api_modules() -> dict[str, list[str]]:
    """Modules with something public, by page: the loose ones together, and those of each package."""
    package_root = ROOT / "rfdit"
    pages: dict[str, list[str]] = {"rfdit": []}
    for path in sorted(package_root.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name.startswith("_") or (len(parts) > 2 and parts[1] == "commands"):
            continue
        pages.setdefault("rfdit" if len(parts) == 2 else f"rfdit.{parts[1]}", []).append(".".join(parts))
    return pages


def api_page(name: str) -> str:
    return f"reference/python/{name}.md"


def api_text(name: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules)])


def all_modules() -> str:
    pages = api_modules()
    lines = [
        "# Python\n",
        'From the docstrings. Shapes stand in the annotations: `Float[Tensor, "b c h w"]` is a tensor of floats with '
        "a batch, a channel and two spatial axes. Whatever is not on these pages may change without notice.\n",
        "Begin with [`rfdit.load`][rfdit.loading.load], [`rfdit.flow`][], [`rfdit.protocols`][] "
        "and [`rfdit.batch`][].\n",
        "| package | modules |",
        "| --- | --- |",
    ]
    for name, modules in pages.items():
        short = ", ".join(f"[`{module.removeprefix('rfdit.')}`][{module}]" for module in modules)
        lines.append(f"| [`{name}`]({api_page(name).removeprefix('reference/python/')}) | {short} |")
    return "\n".join(lines)
