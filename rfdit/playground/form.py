"""The page's form: the values that its fields may have, and the settings of sample.py that they stand for."""

import re
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rfdit.config.build import CONFIG_DIR, composed
from rfdit.config.overrides import quoted

LARGEST_SEED = 2**63 - 1
LONGEST_TEXT = 4000  # characters of a prompt; text encoders read less
# Ends of the sliders; images mean nothing beyond.
LARGEST_SCALE, SMALLEST_SHIFT, LARGEST_SHIFT = 20, 0.1, 16
SMALLEST_STRENGTH, STRENGTH = 0.05, 0.6  # and what the slider begins with
LARGEST_FILE = 8 * 2**20  # bytes of an uploaded image
LONGEST_NAME = 255  # characters of its name


@dataclass(frozen=True)
class Choice:
    """An option of the group sampler or guidance. about: the first comment in its YAML. node: its settings."""

    name: str
    about: str
    node: dict[str, Any]

    @property
    def scale(self) -> tuple[str, float] | None:
        """The path and the value of a guidance's scale, or of one inside it; None for a guidance without one."""
        return next(_scales("guidance", self.node), None)


def choices(group: str, leave_out: Collection[str]) -> dict[str, Choice]:
    """The options of a group by name, the default of sample.py first.

    leave_out: options not to be offered, as `group/name`. Those that need more settings, such as a second
        checkpoint, are not offered either.
    """
    default = composed("sample")[group]
    found = []
    for file in sorted((CONFIG_DIR / group).glob("*.yaml")):
        if f"{group}/{file.stem}" in leave_out:
            continue
        try:
            node = composed("sample", [f"{group}={file.stem}"])[group]
        except ValueError:
            continue
        first = file.read_text().partition("\n")[0]
        about = first.removeprefix("#").strip() if first.startswith("#") else ""
        found.append(Choice(file.stem, about, node))
    return {choice.name: choice for choice in sorted(found, key=lambda choice: choice.node != default)}


def _scales(path: str, node: dict[str, Any]) -> Iterator[tuple[str, float]]:
    if "scale" in node:
        yield f"{path}.scale", float(node["scale"])
    for name, child in node.items():
        if isinstance(child, dict):
            yield from _scales(f"{path}.{name}", child)


@dataclass(frozen=True)
class Upload:
    """A visitor's image file, as the page's field holds it: its name, a line end, and its bytes as a data URL."""

    field: str

    @property
    def name(self) -> str:
        return self.field.partition("\n")[0]

    @property
    def data(self) -> bytes:
        """The bytes of the file; raises ValueError for a field that does not hold them."""
        return b64decode(self.field.partition(";base64,")[2], validate=True)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings that images depend on, apart from the model.

    input: the prompt, or the class's number. scale: None for a guidance that has none.
    image, strength: of an image to start from; None without one.
    """

    input: str | int
    negative: str | None
    seed: int
    count: int
    solver: str
    steps: int
    shift: float
    guidance: str
    scale: float | None
    image: Upload | None = None
    strength: float | None = None


class Form:
    """The page's fields.

    classes: the names that the model's classes are shown with; None for a model of captions.
    max_steps, max_images: the most that one visitor may ask for at once.
    leave_out: as for `choices`.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str] | None,
        max_steps: int,
        max_images: int,
        leave_out: Collection[str] = (),
    ) -> None:
        for name, most in (("max_steps", max_steps), ("max_images", max_images)):
            if most < 1:
                raise ValueError(f"{name}={most} must be at least 1")
        self.classes, self.max_steps, self.max_images = classes, max_steps, max_images
        self.solvers, self.guidances = choices("sampler", leave_out), choices("guidance", leave_out)

    def first(self) -> Settings:
        """The settings that the page begins with, for one step towards one image."""
        solver, guidance = next(iter(self.solvers.values())), next(iter(self.guidances.values()))
        return Settings(
            input="an image" if self.classes is None else 0,
            negative=None,
            seed=0,
            count=1,
            solver=solver.name,
            steps=1,
            shift=solver.node["shift"],
            guidance=guidance.name,
            scale=guidance.scale and guidance.scale[1],
        )

    def read(self, fields: Mapping[str, Any]) -> Settings:
        """The settings in the page's fields, by the names of `Settings`.

        Raises ValueError with a sentence for the visitor.
        """
        for label, offered in (("Solver", self.solvers), ("Guidance", self.guidances)):
            if not isinstance(name := fields[label.lower()], str) or name not in offered:
                raise ValueError(f"{label}: {name} is not offered; choose one of {', '.join(offered)}.")
        guided = self.guidances[fields["guidance"]].scale is not None
        negative = _text("Negative prompt", fields["negative"])
        image = _upload(fields["image"])

        def number(label: str, name: str, least: float, most: float) -> float:
            valid = f"a number from {least:g} to {most:g}"
            return float(_number(label, fields[name], valid, lambda x: least <= x <= most))

        def whole(label: str, name: str, most: int) -> int:
            valid = f"a whole number from 1 to {most}"
            return int(_number(label, fields[name], valid, lambda x: x == int(x) and 1 <= x <= most))

        return Settings(
            input=self._input(fields["input"]),
            # Without guidance there is nothing to move away from, and the page hides the field.
            negative=negative if negative and guided and self.classes is None else None,
            seed=_seed(fields["seed"]),
            count=whole("Images", "count", self.max_images),
            solver=fields["solver"],
            steps=whole("Steps", "steps", self.max_steps),
            shift=number("Time shift", "shift", SMALLEST_SHIFT, LARGEST_SHIFT),
            guidance=fields["guidance"],
            scale=number("Scale", "scale", 0, LARGEST_SCALE) if guided else None,
            image=image,
            strength=number("Strength", "strength", SMALLEST_STRENGTH, 1) if image else None,
        )

    def overrides(self, settings: Settings) -> list[str]:
        """The settings as sample.py takes them."""
        labels = isinstance(settings.input, int)
        values: dict[str, Any] = {
            "labels"
            if labels
            else "prompts": f"[{settings.input if labels else quoted(str(settings.input))}]",
            "negative": settings.negative and quoted(settings.negative),
            "seed": settings.seed,
            "count": settings.count,
            "sampler": settings.solver,
            "sampler.steps": settings.steps,
            "sampler.shift": settings.shift,
            "guidance": settings.guidance,
        }
        if scale := self.guidances[settings.guidance].scale:
            values[scale[0]] = settings.scale
        if image := settings.image:
            values |= {
                "use": "image_to_image",
                "use.image": quoted(image.name),
                "use.strength": settings.strength,
            }
        return [f"{name}={value}" for name, value in values.items() if value is not None]

    def _input(self, value: Any) -> str | int:
        if self.classes is None:
            if prompt := _text("Prompt", value):
                return prompt
            raise ValueError("Prompt: it is empty; describe an image.")
        if isinstance(value, int) and 0 <= value < len(self.classes):
            return value
        raise ValueError("Class: none is chosen; choose one from the list.")


def _text(label: str, value: Any) -> str:
    text = str(value or "").strip()
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{label}: {len(text)} characters are too many; write at most {LONGEST_TEXT}.")
    return text


def _upload(value: Any) -> Upload | None:
    """The file that was chosen; None without one. Its pixels are decoded, and bounded, when it is used."""
    if not value:
        return None
    upload = Upload(str(value))
    name = upload.name[:LONGEST_NAME]
    try:
        size = len(upload.data)
    except ValueError:
        size = 0
    if size == 0 or name != upload.name or not name.isprintable():
        raise ValueError("Image: the file did not arrive whole; choose it again.")
    if size > LARGEST_FILE:
        raise ValueError(f"Image: {name} has {size:,} bytes; choose a file of at most {LARGEST_FILE:,}.")
    return upload


def _seed(value: Any) -> int:
    """Seeds come as text, since a browser's numbers are exact only up to 2^53."""
    text = "" if value is None else str(value).strip()
    number = int(text) if re.fullmatch(r"\d{1,19}", text, re.ASCII) else text[:40] or None
    valid = f"a whole number from 0 to {LARGEST_SEED}"
    return int(_number("Seed", number, valid, lambda x: x <= LARGEST_SEED))


def _number(label: str, value: Any, valid: str, fits: Callable[[float], bool]) -> float:
    # NaN and infinity are not comparable, or too large, as are integers that no float can hold.
    if isinstance(value, int | float) and abs(value) <= LARGEST_SEED and fits(value):
        return value
    raise ValueError(f"{label}: {'an empty field' if value is None else value} is not {valid}.")
