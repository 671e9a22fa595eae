"""Groups, options and settings with the comments that stand in `conf/`, read as text, without Hydra and torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

import rfdit

PACKAGE = Path(rfdit.__file__).parent
# conf/ is inside the package in a wheel and beside it in a checkout.
CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
RECIPES = {"experiment", "debug", "recipe"}  # groups whose options choose those of others
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def in_order(name: str) -> list[str | int]:
    """Key that sorts names with the numbers in them by value: p2, p4, p16."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def option_names(group: Path) -> list[str]:
    """The options in a group's folder."""
    return sorted((path.stem for path in group.glob("*.yaml")), key=in_order)


@dataclass(frozen=True)
class Setting:
    """A setting: its full name, its default as it is written, and the comment behind it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """A group in a list of defaults: its name, the option that is chosen (None for none), the comment behind it.

    package: where its settings go; "" for the root.
    """

    name: str
    option: str | None
    meaning: str
    package: str

    @property
    def options(self) -> list[str]:
        """The names of all options."""
        return option_names(CONFIG_DIR / self.name)


@dataclass
class Described:
    """A composed configuration: its groups, and its settings by name, in the order of their files."""

    groups: dict[str, Group] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)

    def add(self, setting: Setting) -> None:
        """Add a setting; one that is there gets the new default, and keeps its comment if there is no other."""
        known = self.settings.get(setting.name)
        kept = known is not None and not setting.meaning
        self.settings[setting.name] = replace(setting, meaning=known.meaning) if kept and known else setting


def header(text: str) -> tuple[str, list[str]]:
    """The comment at the top of a YAML file as one paragraph, and the example commands in it, which are indented."""
    lines, examples = [], []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("#   "):
            examples.append(line[1:].strip())
        elif not line.startswith("# @package"):
            lines.append(line[1:].strip())
    return " ".join(lines), examples


def comment_behind(node: yaml.Node, lines: Sequence[str]) -> str:
    """The comment that follows a node on its last line."""
    end = node.end_mark
    found = re.search(r"(?:^|\s)#\s*(.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
    return found[1] if found else ""


def settings_of(text: str, prefix: str = "") -> Iterator[Setting]:
    """The settings of a YAML file without `defaults` and `hydra`; prefix: of their names, with its dot."""
    root = yaml.compose(text, LOADER)
    if isinstance(root, yaml.MappingNode):
        yield from _below(root, text.splitlines(), text, prefix)


def _below(node: yaml.MappingNode, lines: Sequence[str], text: str, prefix: str) -> Iterator[Setting]:
    for key, value in node.value:
        if key.value in ("defaults", "hydra", "_recursive_"):
            continue
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if meaning := comment_behind(key, lines):
                yield Setting(name, "", meaning)
            yield from _below(value, lines, text, f"{name}.")
        else:
            written = " ".join(text[value.start_mark.index : value.end_mark.index].split())
            yield Setting(name, written, comment_behind(value, lines))


def defaults_of(text: str) -> Iterator[tuple[str, str | None, str]]:
    """(name, option, comment) of each entry in a YAML file's list of defaults.

    The option of a whole file, such as `_self_`, is "", and that of a group without one None.
    """
    root, lines = yaml.compose(text, LOADER), text.splitlines()
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        for entry in value.value if key.value == "defaults" else ():
            if isinstance(entry, yaml.MappingNode):
                ((name, option),) = entry.value
                none = option.tag == "tag:yaml.org,2002:null"
                yield name.value, None if none else option.value, comment_behind(option, lines)
            else:
                yield entry.value, "", ""


def describe(command: str, chosen: Mapping[str, str]) -> Described:
    """The groups and settings of a command; chosen: options by group, in place of the defaults."""
    options: dict[str, str | None] = dict(chosen)
    for recipe in RECIPES & chosen.keys():
        for name, option, _ in defaults_of(_read(f"{recipe}/{chosen[recipe]}")):
            if name.startswith("override "):
                options.setdefault(name.removeprefix("override ").lstrip("/"), option)
    found = Described()
    _describe(command, "", "", options, found)
    return found


def _describe(
    file: str, group: str, package: str, options: Mapping[str, str | None], found: Described
) -> None:
    """Add a file and those of its defaults. group: its folder; package: where its settings go."""
    text = _read(file)
    entries = list(defaults_of(text)) or [("_self_", "", "")]
    if "_self_" not in [name for name, *_ in entries]:
        entries.append(("_self_", "", ""))
    for name, option, meaning in entries:
        if name == "_self_":
            for setting in settings_of(text, f"{package}." if package else ""):
                found.add(setting)
        elif option == "":
            if (CONFIG_DIR / group / f"{name}.yaml").exists():  # schemas are in the code
                _describe(f"{group}/{name}".lstrip("/"), group, package, options, found)
        elif not name.startswith("override "):
            path, _, below = name.partition("@")
            inner = path.lstrip("/") if path.startswith("/") or not group else f"{group}/{path}"
            option = options.get(inner, option)
            own = f"{package}.{below or path.lstrip('/')}".lstrip(".")
            several = [] if option is None else option.strip("[]").split(",")  # [a,b] chooses both
            if several:
                own = _package(f"{inner}/{several[0].strip()}", own)
            found.groups[inner] = Group(inner, option, meaning, own)
            for each in several:
                _describe(f"{inner}/{each.strip()}", inner, own, options, found)


def _package(file: str, otherwise: str) -> str:
    """The package that a file names in its first line."""
    named = re.match(r"# @package (\S+)", _read(file))
    return otherwise if named is None else "" if named[1] == "_global_" else named[1]


def _read(file: str) -> str:
    return (CONFIG_DIR / f"{file}.yaml").read_text(encoding="utf-8")
