"""The protocol of an evaluation: all that its values depend on, apart from the evaluated weights."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rfdit.counted import counted
from rfdit.differences import differences, flatten
from rfdit.storage.checksum import json_digest


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """The way in which an evaluation was made, as plain data, recorded beside its values.

    Values compare if their protocols have no `differences`.

    metrics: settings of each metric, by name.
    features: the feature network: name, sha256 of its weights, resize, precision; empty if there is none.
    reference: name and sha256 of the reference set, and how it was made; empty if there is none.
    samples: number of images. image_size: [height, width] in pixels.
    inputs: order of the labels, or source of the captions.
    sampler: solver, grid and shift.
    evaluations: evaluations of the network per image, two for a guided velocity; None for an adaptive solver.
    guidance: its name and settings. precision: that of the network's matrix products, bf16 or fp32.
    weights: name and profile of the average, or raw. seed: seed of noise, labels and draws of metrics.
    """

    metrics: dict[str, Any]
    features: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    samples: int
    image_size: list[int]
    inputs: dict[str, Any]
    sampler: dict[str, Any]
    steps: int
    evaluations: float | None
    guidance: dict[str, Any]
    precision: str
    weights: dict[str, Any]
    seed: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():  # as it comes back from JSON: tuples, for one, as lists
            object.__setattr__(self, name, json.loads(json.dumps(value)))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "EvalProtocol":
        """The inverse of `as_dict`; raises ValueError for settings that are unknown or missing."""
        known = {f.name for f in fields(cls)}
        if known != set(record):
            wrong = sorted(known ^ set(record))
            raise ValueError(f"a protocol has {', '.join(sorted(known))}, and this one differs in {wrong}")
        return cls(**record)

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` takes."""
        return asdict(self)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for protocols without differences."""
        return json_digest(flatten(_compared(self)), digits=12)

    def differences(self, other: "EvalProtocol") -> list[str]:
        """Settings that differ, as `name=here (there value)`.

        The name of a reference file is not one of them, its contents are.
        """
        return [
            f"{difference.path}={_shown(difference.here)} (there {_shown(difference.there)})"
            for difference in differences(_compared(self), _compared(other))
        ]

    def __str__(self) -> str:
        """One line for people."""
        height, width = self.image_size
        evaluations = "" if self.evaluations is None else f" ({self.evaluations:g} evaluations)"
        parts = [
            f"{counted(self.samples, 'image')} of {height}x{width}",
            _described(self.inputs),
            f"{self.sampler['solver']['name']} {counted(self.steps, 'step')}{evaluations}",
            _described(self.guidance),
            self.precision,
            f"weights {_described(self.weights)}",
            *(["features " + _described(self.features)] if self.features else []),
            *(["reference " + _described(self.reference)] if self.reference else []),
            f"seed {self.seed}",
        ]
        return f"[{self.hash}] " + ", ".join(parts)


@dataclass(frozen=True)
class ProtocolGroup:
    """Records of one protocol. differences: from the protocol of the first group, where it is empty."""

    protocol: EvalProtocol
    records: list[dict[str, Any]]
    differences: list[str]


def group_by_protocol(records: Iterable[Mapping[str, Any]]) -> list[ProtocolGroup]:
    """Groups records of `evaluations.jsonl`, the largest group first; values compare within a group."""
    found: dict[str, tuple[EvalProtocol, list[dict[str, Any]]]] = {}
    for record in records:
        protocol = EvalProtocol.from_dict(record["protocol"])
        found.setdefault(protocol.hash, (protocol, []))[1].append(dict(record))
    groups = sorted(found.values(), key=lambda group: -len(group[1]))
    return [
        ProtocolGroup(protocol, members, protocol.differences(groups[0][0])) for protocol, members in groups
    ]


def _compared(protocol: EvalProtocol) -> dict[str, Any]:
    """The settings that make two protocols different."""
    values = protocol.as_dict()
    # Its checksum is that of its images, next to the settings with which they were read.
    if "sha256" in values["reference"]:
        values["reference"].pop("name", None)
    return values


def _shown(value: Any) -> str:
    """A value as text; only the beginning of a long one (a hash, a list of times)."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _described(settings: Mapping[str, Any]) -> str:
    """Name and settings of a part, in short."""
    rest = [
        f"{name} {_shown(value)}"
        for name, value in settings.items()
        if name not in ("name", "sha256") and not isinstance(value, dict)
    ]
    digest = [settings["sha256"][:8]] if settings.get("sha256") else []
    return " ".join([str(settings.get("name", "")), *rest, *digest]).strip()
