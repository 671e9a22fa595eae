"""Imports point one way, frameworks stay in their places, and files stay short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import rfdit

ROOT = Path(rfdit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Each part may import from the layers before its own, and from itself; not from its layer's others.
LAYERS = [
    ["batch"],
    [
        "flow",
        "randomness",
        "images",
        "image_grid",
        "device",
        "progress",
        "differences",
        "counted",
        "extras",
        "limits",
        "micro",
        "protocols",
        "storage",
        "pretrained",
        "processes",
    ],
    ["model", "objective", "autoencoder", "text_encoder", "conditioning", "data"],
    ["network"],
    ["config", "sampler", "ema"],
    ["cost", "eval", "checkpoint"],
    ["interchange", "run"],
    ["generate", "training", "finetune"],
    ["callbacks", "playground", "reporting", "loading"],
    ["commands"],
    ["__main__"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

ALLOWED = {
    "lightning": ["data/stream", "training", "callbacks", "commands"],
    "pytorch_lightning": [],
    "hydra": ["config", "commands"],
    "omegaconf": ["config", "commands"],
    "diffusers": ["autoencoder", "interchange"],
    "transformers": ["text_encoder", "interchange"],
    "peft": ["model"],
    "open_clip": ["text_encoder", "interchange", "eval"],
    "torch_fidelity": ["eval"],
    "timm": ["eval"],
    "webdataset": ["data", "generate"],
    "torchmetrics": ["eval", "callbacks"],
    "torchdiffeq": ["sampler"],
    "gradio": ["playground"],
    "av": ["data"],
    "aiohttp": ["data"],
    "pyarrow": ["data"],
}
LAZY = [
    "diffusers",
    "transformers",
    "peft",
    "open_clip",
    "torch_fidelity",
    "timm",
    "torchdiffeq",
    "gradio",
    "av",
    "pyarrow",
]


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    lazy: bool  # inside a function

    @property
    def part(self) -> str:
        """The package or file directly under rfdit that imports."""
        path = self.file.relative_to(ROOT)
        return path.parts[0].removesuffix(".py")

    def is_in(self, places: list[str]) -> bool:
        """True for a file of one of these packages or folders under rfdit."""
        path = self.file.relative_to(ROOT)
        return any(path.is_relative_to(place) for place in places)

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT.parent)}:{self.line} imports {self.module}"


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a file; those for type checkers alone count as lazy."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, name.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "rfdit":  # from rfdit import flow
                for name in node.names:
                    yield Import(file, node.lineno, f"rfdit.{name.name}", lazy)
            else:
                yield Import(file, node.lineno, node.module, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(ast.parse(file.read_text()), lazy=False)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


IMPORTS = [found for file in FILES for found in imports_of(file)]


def test_every_part_has_its_layer() -> None:
    parts = {file.relative_to(ROOT).parts[0].removesuffix(".py") for file in FILES} - {"__init__", "conf"}
    assert parts <= LEVEL.keys(), f"give {sorted(parts - LEVEL.keys())} a place in LAYERS"


def test_imports_point_one_way() -> None:
    wrong = []
    for found in IMPORTS:
        if not found.module.startswith("rfdit.") or found.part == "__init__":
            continue
        target = found.module.split(".")[1]
        base = LEVEL[target] == LEVEL[found.part] == 1  # files of the base may know each other
        if target != found.part and not base and LEVEL[target] >= LEVEL[found.part]:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_command_is_imported() -> None:
    """Commands do not import each other; `rfdit COMMAND` imports the one that it runs, and `rfdit.train` its own."""
    wrong = [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[:2] == ["rfdit", "commands"] and found.part not in ("__main__", "__init__")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("framework", ALLOWED)
def test_frameworks_stay_in_their_places(framework: str) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == framework and not found.is_in(ALLOWED[framework])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("framework", LAZY)
def test_wrapped_libraries_are_imported_lazily(framework: str) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == framework
        and not found.lazy
        # What is copied into diffusers folders runs without rfdit, and rfdit imports it lazily.
        and "shipped" not in found.file.parts
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "foreign"),
    [
        (["model", "objective", "autoencoder", "text_encoder", "sampler"], [*ALLOWED]),
        # Lightning and torchmetrics take longer to import than all else that sampling needs.
        (
            [*(f"commands.{name}" for name in ("sample", "export", "posthoc", "plan")), "loading"],
            ["lightning", "torchmetrics", *LAZY],
        ),
    ],
)
def test_what_is_not_needed_is_not_imported(modules: list[str], foreign: list[str]) -> None:
    """In a fresh interpreter, networks, objectives and samplers load torch and nothing that wraps it."""
    program = (
        f"import sys, {', '.join(f'rfdit.{name}' for name in modules)};"
        f"print([name for name in {foreign!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_short_and_named_for_an_idea() -> None:
    # An exported folder gets the pipeline as one file, since diffusers loads no other beside it.
    files = [file for file in FILES if file.parent.name != "shipped"]
    lengths = {file: len(file.read_text().splitlines()) for file in files}
    assert {file: length for file, length in lengths.items() if length > 350} == {}
    assert not [file for file in FILES if file.stem in {"utils", "helpers", "common", "misc"}]


def test_no_test_module_is_imported() -> None:
    """Code that several test files need is in tests/support."""
    wrong = [
        str(found)
        for file in sorted(Path(__file__).parents[1].rglob("*.py"))
        for found in imports_of(file)
        if found.module.startswith("tests.") and found.module.rpartition(".")[2].startswith("test_")
    ]
    assert not wrong, "\n".join(wrong)
