"""What a visitor asks for: read from the page's fields, and written as sample.py's settings."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rfdit.playground.choices import GuidanceChoice, SolverChoice

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a painting depends on, beside the model.

    given: the prompt, or the class's number. scale: None for a guidance that has none.
    """

    given: str | int
    negative: str | None
    seed: int
    count: int
    solver: str
    steps: int
    shift: float
    guidance: str
    scale: float | None


class Form:
    """The page's fields: what may stand in them, and what it means to sample.py.

    classes: the names that the model's classes are shown with; None for a model that knows captions.
    max_steps, max_pictures: what one visitor may ask for at once.
    """

    def __init__(
        self,
        *,
        solvers: Sequence[SolverChoice],
        guidances: Sequence[GuidanceChoice],
        classes: Sequence[str] | None,
        max_steps: int,
        max_pictures: int,
    ) -> None:
        for name, most in (("max_steps", max_steps), ("max_pictures", max_pictures)):
            if most < 1:
                raise ValueError(f"{name}={most} must be at least 1")
        self.solvers = {choice.name: choice for choice in solvers}
        self.guidances = {choice.name: choice for choice in guidances}
        self.classes, self.max_steps, self.max_pictures = classes, max_steps, max_pictures

    def read(self, fields: Mapping[str, Any]) -> Settings:
        """The settings in the page's fields, by the names of `Settings`.

        Raises ValueError with a sentence for the visitor.
        """
        solver, guidance = fields["solver"], self.guidances.get(fields["guidance"])
        if solver not in self.solvers:
            raise ValueError(f"Solver: {solver} is none; choose one of {', '.join(self.solvers)}.")
        if guidance is None:
            raise ValueError(
                f"Guidance: {fields['guidance']} is none; choose one of {', '.join(self.guidances)}."
            )
        negative = str(fields["negative"] or "").strip()
        return Settings(
            given=self._given(fields["given"]),
            # Where nothing guides, there is nothing to move away from, and the page hides the field.
            negative=negative if negative and guidance.setting and self.classes is None else None,
            seed=_seed(fields["seed"]),
            count=_whole("Pictures", fields["count"], self.max_pictures),
            solver=solver,
            steps=_whole("Steps", fields["steps"], self.max_steps),
            shift=_number("Time shift", fields["shift"], above=True),
            guidance=guidance.name,
            scale=_number("Scale", fields["scale"], above=False) if guidance.setting else None,
        )

    def overrides(self, settings: Settings) -> list[str]:
        """The settings as sample.py takes them."""
        given = settings.given
        words = [f"labels=[{given}]" if isinstance(given, int) else f"prompts=[{quoted(given)}]"]
        if settings.negative is not None:
            words.append(f"negative={quoted(settings.negative)}")
        words += [
            f"seed={settings.seed}",
            f"count={settings.count}",
            f"sampler={settings.solver}",
            f"sampler.steps={settings.steps}",
            f"sampler.shift={settings.shift!r}",
            f"guidance={settings.guidance}",
        ]
        if settings.scale is not None:
            words.append(f"{self.guidances[settings.guidance].setting}={settings.scale!r}")
        return words

    def _given(self, given: Any) -> str | int:
        if self.classes is None:
            if prompt := str(given or "").strip():
                return prompt
            raise ValueError("Prompt: it is empty; say what to paint.")
        if isinstance(given, int) and 0 <= given < len(self.classes):
            return given
        raise ValueError("Class: none is chosen; choose one from the list.")


def quoted(text: str) -> str:
    """A text as Hydra reads it on a command line, whatever is in it: none of it is an interpolation."""
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)
    text = re.sub(r"(\\*)\"", lambda found: 2 * found[1] + r"\"", text)
    text = re.sub(r"(\\+)\Z", lambda found: 2 * found[1], text)
    return f'"{text}"'


def _seed(value: Any) -> int:
    """Seeds come as text, since a browser's numbers are exact only up to 2^53."""
    text = str(value if value is not None else "").strip()
    if re.fullmatch(r"\d{1,19}", text, re.ASCII) and int(text) <= LARGEST_SEED:
        return int(text)
    shown = text if text else "an empty field"
    raise ValueError(f"Seed: {shown} is no whole number from 0 to {LARGEST_SEED}.")


def _whole(label: str, value: Any, most: int) -> int:
    if isinstance(value, int | float) and math.isfinite(value) and value == int(value) and 1 <= value <= most:
        return int(value)
    raise ValueError(f"{label}: {_shown(value)} is no whole number from 1 to {most}.")


def _number(label: str, value: Any, *, above: bool) -> float:
    """A finite number, above 0 or at least 0."""
    if isinstance(value, int | float) and math.isfinite(value) and (value > 0 if above else value >= 0):
        return float(value)
    raise ValueError(f"{label}: {_shown(value)} is no number {'above 0' if above else 'from 0 on'}.")


def _shown(value: Any) -> str:
    return "an empty field" if value is None else f"{value}"
