"""Every number in a configuration has limits, and NaN and infinity are within none."""

import importlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from rfdit.config.build import CONFIG_DIR
from rfdit.config.schemas import SCHEMAS
from rfdit.differences import walk
from rfdit.limits import Count, Finite, Fraction, Limit, NotNegative, Positive, Size, violations
from tests.support.commands.command_line import CommandLine

# What only the run can tell: the labels that a model knows; the steps of a run that may have no end; the layers of a
# text encoder.
ELSEWHERE = {"SampleGrid.inputs", "DecaySchedule.total_steps", "TransformersEncoder.layer"}


def constructors() -> Iterator[Any]:
    """The targets in conf/, and what else their modules offer to YAML: callables with keywords only."""
    modules = set()
    for path in CONFIG_DIR.rglob("*.yaml"):
        for key, value in walk(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):
            if key.rpartition(".")[2] == "_target_" and value.startswith("rfdit."):
                modules.add(get_object(value).__module__)
    for module in map(importlib.import_module, sorted(modules)):
        for name, found in vars(module).items():
            own = callable(found) and not name.startswith("_") and found.__module__ == module.__name__
            if own and not is_dataclass(found) and _from_yaml(found):
                yield found


def _from_yaml(target: Any) -> bool:
    if inspect.isclass(target) and issubclass(target, BaseException):
        return False
    kinds = {parameter.kind for parameter in inspect.signature(target).parameters.values()}
    return kinds == {inspect.Parameter.KEYWORD_ONLY}


def unlimited(hint: Any) -> bool:
    """True for an annotation that lets every number pass."""
    if get_origin(hint) is Annotated and any(isinstance(part, Limit) for part in hint.__metadata__):
        return False
    return hint in (int, float) or any(map(unlimited, get_args(hint)))


def without_limit(name: str, function: Any) -> set[str]:
    hints = get_type_hints(function, include_extras=True)
    return {f"{name}.{key}" for key, hint in hints.items() if key != "return" and unlimited(hint)}


def test_every_number_of_a_constructor_has_a_limit() -> None:
    found = list(constructors())
    assert len(found) > 60
    functions = {each: each.__init__ if inspect.isclass(each) else each for each in found}
    assert set().union(*(without_limit(each.__name__, f) for each, f in functions.items())) == ELSEWHERE


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_number_of_a_command_has_a_limit(command: str) -> None:
    assert not without_limit(command, SCHEMAS[command])


@pytest.mark.parametrize(
    "hint", [Finite, Fraction, NotNegative, Positive, Positive | None, list[NotNegative]]
)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_within_no_limit(hint: Any, number: float) -> None:
    assert list(violations([number] if get_origin(hint) is list else number, hint))


@pytest.mark.parametrize(
    ("value", "hint", "held"),
    [(2, Size, True), ([2, 3], Size, True), ([2], Size, False), ([2, 0], Size, False), ("2", Size, False),
     (None, Count | None, True), (0, Count | None, False), ([1, 0], list[Count] | None, False),
     ([1], Count | list[Count], True)],
)  # fmt: skip
def test_sides_lists_and_null(value: Any, hint: Any, held: bool) -> None:
    assert (not list(violations(value, hint))) == held


def test_sampling_names_every_number_out_of_bounds(cli: CommandLine) -> None:
    message = cli.error(
        "sample", "guidance.scale=nan", "sampler.shift=inf", "scales=[1,nan]", "first_key=9223372036854775808"
    )
    assert sorted(message.split("; ")) == [
        "first_key=9223372036854775808 must be from 0 to 2^63 - 1",
        "guidance.scale=nan must be at least 0 and finite",
        "sampler.shift=inf must be more than 0 and finite",
        "scales=[1.0, nan] must be at least 0 and finite, each of them, or null",
    ]


def test_training_names_every_number_out_of_bounds(cli: CommandLine) -> None:
    sizes = ["model.width=0", "model.num_heads=0", "model.patch_size=0", "data.batch_size=-1"]
    message = cli.error("train", *sizes)
    assert sorted(message.split("; ")) == sorted(f"{size} must be at least 1" for size in sizes)


@pytest.mark.parametrize("given", ["-32", "[32]", "0"])
def test_sides(cli: CommandLine, given: str) -> None:
    assert cli.error("train", f"data.resolution={given}") == (
        f"data.resolution={given} must be one side, or [height,width], in whole numbers above 0"
    )
