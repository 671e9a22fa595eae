"""What a number depends on beside the network it is about, and when two numbers compare."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from rfdit.frozen import weights_digest

# Settings that change speed alone, and the path of a guide, whose weights are told apart by their sha256.
EQUIVALENT = {"batched", "ckpt"}


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """How an evaluation was made, as plain data; it is stored beside each of its numbers.

    metrics: each metric's settings, by name. features: the network that looked at the pictures: its name,
        the sha256 of its weights, how it resizes, whatever else its numbers depend on; empty for none.
    reference: the name and sha256 of the statistics that were compared with; empty for none.
    samples: pictures. image_size: [height, width] as they were made, in pixels.
    inputs: whether labels were balanced, random or shards', or where captions came from.
    sampler: solver, grid and shift. evaluations: of the network per picture, a guided velocity being two;
        None for a solver that chooses its own.
    guidance: its name and settings. precision: of the network's matrix products, bf16 or fp32.
    weights: the average's name and profile, or raw. seed: of noise, labels and draws of metrics.
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
        for name, value in asdict(self).items():  # tuples, say, would come back from JSON as lists
            object.__setattr__(self, name, json.loads(json.dumps(value)))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "EvalProtocol":
        """The protocol that `as_dict` gave; raises ValueError for settings that are unknown or missing."""
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
        """Twelve hexadecimal digits, equal for protocols without differences."""
        return hashlib.sha256(json.dumps(_compared(self), sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: "EvalProtocol") -> list[str]:
        """What is set otherwise, as `name=here (there value)`; numbers with any compare only with care.

        A reference of another name with the same contents is the same.
        """
        mine, theirs = _compared(self), _compared(other)
        return [
            f"{name}={_shown(mine.get(name))} (there {_shown(theirs.get(name))})"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    def __str__(self) -> str:
        """One line for people."""
        height, width = self.image_size
        evaluations = "" if self.evaluations is None else f" ({self.evaluations:g} evaluations)"
        parts = [
            f"{self.samples:,} pictures of {height}x{width}",
            _described(self.inputs),
            f"{self.sampler['solver']['name']} {self.steps} steps{evaluations}",
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
    """Records of one protocol. differences: from the first group's protocol; none in the first itself."""

    protocol: EvalProtocol
    records: list[dict[str, Any]]
    differences: list[str]


def group_by_protocol(records: Iterable[Mapping[str, Any]]) -> list[ProtocolGroup]:
    """Records of evaluations, as `evaluations.jsonl` has them, in groups within which numbers compare.

    The largest group comes first, and the others say how they differ from it.
    """
    found: dict[str, tuple[EvalProtocol, list[dict[str, Any]]]] = {}
    for record in records:
        protocol = EvalProtocol.from_dict(record["protocol"])
        found.setdefault(protocol.hash, (protocol, []))[1].append(dict(record))
    groups = sorted(found.values(), key=lambda group: -len(group[1]))
    return [
        ProtocolGroup(protocol, members, protocol.differences(groups[0][0])) for protocol, members in groups
    ]


def settings_of(thing: Any) -> Any:
    """An object as plain data: its class's name and its public attributes; of a network, the weights' sha256.

    What is described is the object that is used, whose settings may not all be in a configuration.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, Tensor):
        return thing.tolist()
    if isinstance(thing, Mapping):
        return {str(name): settings_of(value) for name, value in thing.items()}
    if isinstance(thing, Iterable):
        return [settings_of(value) for value in thing]
    name = {"name": type(thing).__name__}
    if isinstance(thing, nn.Module):
        return name | {"sha256": weights_digest(thing)}
    public = {k: v for k, v in vars(thing).items() if not k.startswith("_") and k not in EQUIVALENT}
    return name | {key: settings_of(value) for key, value in public.items()}


def weights_settings(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """What `weights` (raw, ema, or a profile's name) means in a run of a training configuration.

    The first profile is called by its own name, which `ema` stands for.
    """
    if weights == "raw":
        return {"name": "raw"}
    ema = (config.get("callbacks") or {}).get("ema") or {}
    profiles = {k: v for k, v in (ema.get("profiles") or {}).items() if v is not None}
    name = next(iter(profiles), weights) if weights == "ema" else weights
    settings = {k: v for k, v in profiles.get(name, {}).items() if k != "_target_"}
    kind = str(profiles[name]["_target_"]).rpartition(".")[2] if name in profiles else None
    # Where it is 1, as it was before it could be set, the protocol is that of before.
    every = {"every_n_steps": n} if kind and (n := ema.get("every_n_steps", 1)) != 1 else {}
    return {"name": name} | ({"profile": kind} if kind else {}) | settings | every


def _compared(protocol: EvalProtocol) -> dict[str, Any]:
    """What makes two protocols the same, flat."""
    values = protocol.as_dict()
    if "sha256" in values["reference"]:  # of its images; the network and the features kept are beside it
        values["reference"].pop("name", None)
    return _flat(values)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}{name}.").items()}


def _shown(value: Any) -> str:
    """A value, and of a long one (a hash, a list of times) its beginning."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _described(settings: Mapping[str, Any]) -> str:
    """A part's name and settings, short."""
    rest = [
        f"{name} {_shown(value)}"
        for name, value in settings.items()
        if name not in ("name", "sha256") and not isinstance(value, dict)
    ]
    digest = [settings["sha256"][:8]] if settings.get("sha256") else []
    return " ".join([str(settings.get("name", "")), *rest, *digest]).strip()
