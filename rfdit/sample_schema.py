"""What `sample.yaml` may set."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Source:
    """Where an encoder's weights are."""

    source: str | None = None


@dataclass
class SampleConfig:
    """`sample.yaml`. prompts: a list, or the path of a text file; labels: class numbers, names, or `all`."""

    ckpt: str | None
    weights: str
    prompts: Any
    labels: Any
    class_names: str | None
    negative: str | None
    count: int
    total: int | None
    seed: int
    first_key: int
    seeds: list[int] | None
    scales: list[float] | None
    matrix: bool
    resolution: Any
    batch_size: int
    decode_batch: int | None
    compile: bool
    devices: int
    accelerator: str
    precision: str
    out: str | None
    columns: int | None
    packages: list[str]
    sampler: Any
    guidance: Any
    use: Any
    output: Any
    eval: Any
    autoencoder: Source = field(default_factory=Source)
    text_encoder: Source = field(default_factory=Source)
