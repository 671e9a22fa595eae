"""A plan, and its forms for people: a page, a row of a table, JSON."""

from dataclasses import dataclass
from typing import Any

from rfdit.counted import counted

GB = 1e9


@dataclass(frozen=True)
class CostEstimate:
    """The costs of a configuration: memory in bytes per device, rates per device unless their name says otherwise."""

    name: str
    parameters: int
    trainable_parameters: int
    macs: int
    batch_size: int
    devices: int
    shards: int
    precision: str
    fp8: bool
    recompute: str
    state: dict[str, int]  # weights, gradients, optimizer, ema
    checkpoint: int  # bytes on disk, of all devices together
    activations: dict[str, int]  # by the choice of recompute
    peak: float
    peak_from: str
    mfu: float

    @property
    def total(self) -> int:
        return sum(self.state.values()) + self.activations[self.recompute]

    @property
    def images_per_second(self) -> float:
        """Six operations per multiply-add, and two more where full recomputation repeats the forward pass."""
        return self.mfu * self.peak / ((8 if self.recompute == "full" else 6) * self.macs)

    @property
    def images_per_second_of_all(self) -> float:
        """The rate of all devices together, if none ever waits for another."""
        return self.devices * self.images_per_second

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers: memory in GB (10^9 bytes), costs in GMACs, rates in TFLOP/s and images/s."""
        memory = {**self.state, "activations": self.activations[self.recompute], "total": self.total}
        return {
            "name": self.name,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "gmacs": self.macs / 1e9,
            "batch_size": self.batch_size,
            "devices": self.devices,
            "shards": self.shards,
            "precision": self.precision,
            "fp8": self.fp8,
            "recompute": self.recompute,
            "memory_gb": {name: size / GB for name, size in memory.items()},
            "checkpoint_gb": self.checkpoint / GB,
            "activations_gb": {name: size / GB for name, size in self.activations.items()},
            "peak_tflops": self.peak / 1e12,
            "peak_from": self.peak_from,
            "assumed_mfu": self.mfu,
            "images_per_second_per_device": self.images_per_second,
            "images_per_second": self.images_per_second_of_all,
        }


COLUMNS = ("parameters", "GMACs", "state GB", "activ. GB", "total GB", "img/s/device", "img/s")
WIDTHS = (13, 8, 9, 10, 9, 13, 9)
HEADER = " ".join([" " * 24, *(f"{column:>{width}}" for column, width in zip(COLUMNS, WIDTHS))])


def row(plan: CostEstimate) -> str:
    """A row below HEADER."""
    state, activations = sum(plan.state.values()) / GB, plan.activations[plan.recompute] / GB
    return (
        f"{plan.name:24} {plan.parameters:13,} {plan.macs / 1e9:8.2f} {state:9.2f} {activations:10.2f} "
        f"{plan.total / GB:9.2f} {plan.images_per_second:13.4g} "
        f"{plan.images_per_second_of_all:9.4g}"
    )


def page(plan: CostEstimate) -> str:
    """The whole plan as text."""
    state = "".join(f"  {name:24}{size / GB:10.3f} GB\n" for name, size in plan.state.items())
    activations = "".join(
        f"  {f'activations ({name})':24}{size / GB:10.3f} GB{'  <' if name == plan.recompute else ''}\n"
        for name, size in plan.activations.items()
    )
    precision = f"{plan.precision} with FP8 products" if plan.fp8 else plan.precision
    together = (
        f"\nspeed of {f'all {plan.devices}':11}{plan.images_per_second_of_all:.4g} img/s, if none waits for another"
        if plan.devices > 1
        else ""
    )
    return (
        f"parameters          {plan.parameters:,} ({plan.trainable_parameters:,} trained)\n"
        f"cost of an image    {plan.macs / 1e9:.2f} GMACs forward\n"
        f"memory per device   {plan.total / GB:.3f} GB, batch {plan.batch_size} in {precision}, "
        f"state divided by {plan.shards} of {counted(plan.devices, 'device')}\n"
        f"{state}{activations}"
        f"checkpoint          {plan.checkpoint / GB:.3f} GB on disk\n"
        f"speed per device    {plan.images_per_second:.4g} img/s, if {plan.mfu:.0%} (assumed, mfu=) of "
        f"{plan.peak / 1e12:.3g} TFLOP/s ({plan.peak_from}) are reached{together}"
    )
