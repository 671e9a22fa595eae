"""The settings of each root YAML; those of groups are checked against their targets' signatures instead."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from rfdit.limits import AtLeastTwo, Count, Finite, Index, Limit, NotNegative, Positive, Seed

NumpySeed = Annotated[int, Limit(f"from 0 to {2**32 - 1}", lambda n: 0 <= n < 2**32)]
Port = Annotated[int, Limit("from 0 to 65535", lambda n: 0 <= n < 2**16)]
Share = Annotated[float, Limit("a share of the peak, above 0 and at most 1", lambda x: 0 < x <= 1)]
TEXT = "text"  # marks a setting that may be a text or a list of them


@dataclass
class Source:
    """The location of an encoder's weights."""

    source: str | None = None


@dataclass
class SampleConfig:
    """`sample.yaml`. prompts: a list, or the path of a text file; labels: class numbers, names, or `all`."""

    ckpt: str | None
    step: Index | None
    weights: str
    prompts: Any = field(metadata={TEXT: True})
    labels: Any
    class_names: str | None
    negative: str | None
    count: Count
    total: Count | None
    seed: Seed
    first_key: Seed
    seeds: list[Seed] | None
    scales: list[NotNegative] | None
    matrix: bool
    resolution: Any
    batch_size: Count
    decode_batch: Count | None
    compile: bool
    devices: Count
    accelerator: str
    precision: str
    out: str | None
    columns: Count | None
    packages: list[str]
    base: str | None
    adapters: list[str]
    sampler: Any
    guidance: Any
    use: Any
    output: Any
    eval: Any
    autoencoder: Source = field(default_factory=Source)
    text_encoder: Source = field(default_factory=Source)
    micro: dict[str, Finite] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """`train.yaml`. The groups' own settings are checked against the signatures of their targets."""

    seed: NumpySeed
    run_dir: str
    ckpt: str | None
    compile: bool
    objective_metric: str
    fp8: bool
    freeze: list[str]
    init: Any
    adapter: Any
    model: Any
    prediction: Any
    objective: Any
    time: Any
    coupling: Any
    weighting: Any
    autoencoder: Any
    text_encoder: Any
    conditioner: Any
    data: Any
    sampler: Any
    guidance: Any
    eval: Any
    optimizer: Any
    schedule: Any
    callbacks: Any
    trainer: Any
    strategy: Any
    logger: Any
    auxiliary: Any = field(default=None, kw_only=True)
    routing: Any = field(default=None, kw_only=True)
    teacher: Any = field(default=None, kw_only=True)


@dataclass
class PlanConfig(TrainConfig):
    """`plan.yaml`: a training configuration, and how to plan for it."""

    devices: Count
    json: bool
    peak_tflops: Positive | None
    mfu: Share


@dataclass
class PosthocConfig:
    """`posthoc.yaml`."""

    ckpt: str | None
    std: Positive
    step: Index | None
    out: str | None


@dataclass
class EncodeConfig:
    """`encode.yaml`. Without a text_encoder, text features are not cached, nor those of images without a teacher."""

    out: str
    dtype: str
    batch_size: Count
    num_workers: Index
    run_dir: str
    parts: Count
    part: Index
    accelerator: str
    data: Any
    autoencoder: Any
    text_encoder: Any = None
    auxiliary: Any = None


@dataclass
class PackConfig:
    """`pack.yaml`. Only shards, reader and filters of `data` are used."""

    out: str
    samples_per_shard: Count
    verify: bool
    seed: Seed
    run_dir: str
    data: Any


@dataclass
class IndexConfig:
    """`index.yaml`. Only shards, reader and filters of `data` are used."""

    out: str | None
    image_sizes: bool
    seed: Seed
    run_dir: str
    data: Any


@dataclass
class DataConfig:
    """`data.yaml`. Only shards, reader, filters, decoder and resolution of `data` are used."""

    samples: Count
    images: Index
    sheet: str
    seed: Seed
    run_dir: str
    data: Any
    autoencoder: Any = None
    text_encoder: Any = None


@dataclass
class ReferenceConfig:
    """`reference.yaml`. Only shards, reader, filters, decoder and resolution of `data` are used."""

    images: str | None
    resolution: Any
    out: str
    features: Index
    count: AtLeastTwo | None
    batch_size: Count
    num_workers: Index
    accelerator: str
    seed: Seed
    run_dir: str
    network: Any
    data: Any


@dataclass
class ReportConfig:
    """`report.yaml`."""

    runs: str
    out: str | None
    metric: str | None


@dataclass
class ExportConfig:
    """`export.yaml`."""

    ckpt: str | None
    weights: str
    format: str
    out: str
    base: str | None
    packages: list[str]
    autoencoder: Source = field(default_factory=Source)


@dataclass
class DemoConfig:
    """`demo.yaml`."""

    ckpt: str | None
    weights: str | None
    host: str
    port: Port
    max_steps: Count
    max_images: Count
    previews: Index
    leave_out: list[str]
    class_names: str | None
    accelerator: str
    precision: str
    packages: list[str]
    base: str | None
    autoencoder: Source = field(default_factory=Source)
    text_encoder: Source = field(default_factory=Source)


@dataclass
class ConvertConfig:
    """`convert.yaml`."""

    source: str
    file: str
    out: str
    num_heads: Count | None
    null_class: bool | None
    latents_stats: str | None
    autoencoder: Any
    sampler: Any
    guidance: Any
    text_encoder: Any = None


SCHEMAS = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "encode": EncodeConfig,
    "data": DataConfig,
    "pack": PackConfig,
    "index": IndexConfig,
    "reference": ReferenceConfig,
    "plan": PlanConfig,
    "posthoc": PosthocConfig,
    "export": ExportConfig,
    "convert": ConvertConfig,
    "report": ReportConfig,
    "demo": DemoConfig,
}


def text_settings(command: str) -> Collection[str]:
    """The names of a command's settings that are texts or lists of texts."""
    schema = SCHEMAS[command]
    hints = get_type_hints(schema)
    return {
        f.name
        for f in fields(schema)
        if TEXT in f.metadata
        or (get_origin(hints[f.name]) is not dict and str in (hints[f.name], *get_args(hints[f.name])))
    }


def named_settings(command: str) -> Collection[str]:
    """The names of a command's settings that hold numbers under names which the configuration does not list."""
    hints = get_type_hints(SCHEMAS[command])
    return {f.name for f in fields(SCHEMAS[command]) if get_origin(hints[f.name]) is dict}
