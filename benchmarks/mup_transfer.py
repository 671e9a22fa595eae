"""Transfer of the learning rate between model sizes, with AdamW and under muP.

    rfdit encode data.shards=SHARDS out=LATENTS autoencoder=taesd data.resolution=128 \
        data.decoder.label_key=json.label
    python benchmarks/mup_transfer.py --latents LATENTS --out OUT --size s xl

Trains class-conditional DiTs on a folder of cached latents that fits on the device, one model for each size,
optimiser and learning rate. All see the same samples in the same order with the same noise, times and dropped
labels. As in train.py's defaults, gradients are clipped to norm 1, and the learning rate decays linearly to zero
after a warm-up. The loss is that of the final weights on all latents, each with `--draws` draws of noise and
time, which are the same for every model. At muP's base width both optimisers are the same, so that width is
trained once.

A model whose final loss is above that of a zero velocity counts as diverged, or as NaN if it is not a number.
Writes mup_transfer.csv, which a second run continues, and images/mup_transfer.png.
"""

import argparse
import csv
import gc
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rfdit.autoencoder.contract import LatentContract
from rfdit.batch import Condition
from rfdit.conditioning import LabelConditioner, drop_condition
from rfdit.data.filters import Filters
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.latents.manifest import MANIFEST, read_manifest
from rfdit.data.skips import SkippedSampleError
from rfdit.data.tar.source import TarReader
from rfdit.device import multiplies_bf16_fast
from rfdit.model import DiT
from rfdit.model.acceleration import compile_blocks
from rfdit.network import Network
from rfdit.objective import IndependentCoupling, UniformTime, VelocityMatching
from rfdit.protocols import Backbone
from rfdit.randomness import SampleGenerator, permutation
from rfdit.training.optim import AdamW, AdamWMuP, DecaySchedule

SHAPES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
OPTIMIZERS = {"adamw": "AdamW", "adamw_mup": "muP"}
DROP, CLIP, CHECK_EVERY = 0.1, 1.0, 50  # CHECK_EVERY: steps between checks that the loss is finite
OBJECTIVE = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling())
# Okabe and Ito's colours, which colour-blind people can distinguish; markers and dashes also work in grey.
STYLES = [("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", ":"), ("#CC79A7", "D", "-.")]


@dataclass(frozen=True)
class Data:
    """All normalised latents and their class labels, on the device."""

    latents: Tensor  # (n, c, h, w)
    labels: Tensor  # (n,)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings that all models share; rows measured with other settings are measured again."""

    data: str  # digest of the latents
    patch: int
    batch: int
    steps: int
    warmup: int
    base_width: int
    draws: int
    seed: int
    precision: str


@dataclass(frozen=True, kw_only=True)
class Point(Setting):
    """A model to train."""

    size: str
    width: int
    depth: int
    heads: int
    optimizer: str
    lr: float


@dataclass(frozen=True, kw_only=True)
class Row(Point):
    """A trained model.

    loss: final loss. zero: loss of a zero velocity. seconds: time of a step.
    """

    loss: float
    zero: float
    seconds: float

    @property
    def diverged(self) -> bool:
        return not self.loss < self.zero

    @property
    def point(self) -> Point:
        return Point(**{field.name: getattr(self, field.name) for field in fields(Point)})


def digest(folder: Path) -> str:
    """Digest of the latents' manifest and of the names and sizes of their shards."""
    sizes = "".join(f"{file.name} {file.stat().st_size}\n" for file in sorted(folder.glob("*.tar")))
    return hashlib.sha256((folder / MANIFEST).read_bytes() + sizes.encode()).hexdigest()[:12]


def read_latents(folder: Path, device: torch.device) -> Data:
    """Read a folder that `rfdit encode` wrote; takes the means of distributions."""
    contract = LatentContract.from_dict(read_manifest(str(folder / MANIFEST)).latents)
    source = TarReader()([str(file) for file in sorted(folder.glob("*.tar"))], filters=Filters())
    decode, latents, labels = LatentDecoder(autoencoder={}, text=False), [], []
    for raw in source.samples(range(sum(source.shard_sizes))):
        if isinstance(raw, SkippedSampleError):
            raise raw
        sample = decode(raw, (0, 0))
        assert sample.moments is not None
        if sample.label is None:
            raise SystemExit(f"--latents={folder} has no labels; encode with data.decoder.label_key")
        latents.append(sample.moments[: contract.channels].float())
        labels.append(sample.label)
    return Data(contract.normalise(torch.stack(latents)).to(device), torch.tensor(labels, device=device))


def build(point: Point, data: Data) -> Network:
    """The initialised network of a point, on the device of the data; the same at every call."""
    torch.manual_seed(point.seed)
    with data.latents.device:
        backbone = DiT(
            width=point.width, depth=point.depth, num_heads=point.heads, patch_size=point.patch,
            in_channels=data.latents.shape[1], input_size=list(data.latents.shape[2:]),
            base_width=point.base_width if point.optimizer == "adamw_mup" else None,
        )  # fmt: skip
        conditioner = LabelConditioner(num_classes=data.classes, width=point.width, drop=DROP)
    return Network(backbone=backbone, conditioner=conditioner)


def make_optimizer(point: Point) -> AdamW:
    schedule = DecaySchedule(warmup_steps=point.warmup, total_steps=point.steps)
    if point.optimizer == "adamw":
        return AdamW(lr=point.lr, betas=(0.9, 0.999), weight_decay=0.0, schedule=schedule)
    return AdamWMuP(
        lr=point.lr, betas=(0.9, 0.999), weight_decay=0.0, schedule=schedule, base_width=point.base_width
    )


def autocast(setting: Setting, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=setting.precision == "bf16")


def order(n: int, setting: Setting) -> Tensor:
    """The number of the sample at each position, (steps, batch): one shuffled epoch after the other."""
    positions = setting.steps * setting.batch
    epochs = [
        permutation(n, seed=setting.seed, purpose=f"epoch {epoch}")
        for epoch in range(math.ceil(positions / n))
    ]
    return torch.cat(epochs)[:positions].view(setting.steps, setting.batch)


def train(network: Network, data: Data, point: Point) -> None:
    """Train for all steps, or until the loss is not finite."""
    device = data.latents.device
    optimizer, schedule = make_optimizer(point)(network)
    chosen = order(len(data.latents), point).to(device)
    positions = torch.arange(chosen.numel(), device=device).view_as(chosen)
    for step in range(point.steps):
        generator = SampleGenerator(seed=point.seed, keys=positions[step], purpose="train")
        with autocast(point, device):
            cond = network.conditioner(data.labels[chosen[step]], device=device)
            null = network.conditioner.null(device=device)
            cond = drop_condition(cond, null, probability=DROP, generator=generator.fork("drop"))
            z0 = data.latents[chosen[step]]
            loss = OBJECTIVE(network.backbone, z0, cond, generator=generator).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % CHECK_EVERY == CHECK_EVERY - 1 and not bool(torch.isfinite(loss)):
            return


@torch.no_grad()
def evaluate(backbone: Backbone, conditioner: LabelConditioner, data: Data, setting: Setting) -> float:
    """The mean loss over all latents, `draws` times each, with separate noise and times."""
    device, n = data.latents.device, len(data.latents)
    losses = []
    for keys in torch.arange(n * setting.draws, device=device).split(2 * setting.batch):
        generator = SampleGenerator(seed=setting.seed, keys=keys, purpose="evaluation")
        with autocast(setting, device):
            cond = conditioner(data.labels[keys % n], device=device)
            loss = OBJECTIVE(backbone, data.latents[keys % n], cond, generator=generator)
        losses.append(loss.per_sample)
    return torch.cat(losses).double().mean().item()


def zero_velocity(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """The output of every network before its first step."""
    return torch.zeros_like(z_t)


def measure(point: Point, data: Data, *, compiled: bool) -> Row:
    """Train and evaluate a model, and free it."""
    network = build(point, data)
    zero = evaluate(zero_velocity, network.conditioner, data, point)
    if compiled:
        compile_blocks(network.backbone)
    start = time.perf_counter()
    train(network, data, point)
    if data.latents.is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / point.steps
    loss = evaluate(network.backbone, network.conditioner, data, point)
    del network
    gc.collect()  # optimiser and schedule refer to each other
    return Row(**asdict(point), loss=loss, zero=zero, seconds=seconds)


def read(file: Path) -> list[Row]:
    """The rows that were measured before."""
    if not file.exists():
        return []
    kinds: dict[str, Callable[[str], object]] = {field.name: field.type for field in fields(Row)}
    with file.open(newline="") as lines:
        return [
            Row(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(lines)
        ]


def write(file: Path, rows: list[Row]) -> None:
    """Write all rows, in order."""
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, [field.name for field in fields(Row)])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def curves(rows: list[Row], optimizer: str) -> dict[str, list[Row]]:
    """The rows of an optimiser by size, sorted by learning rate; at the base width AdamW's rows serve for muP."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.width, row.depth, row.lr)):
        if row.optimizer == optimizer or row.width == row.base_width:
            found.setdefault(row.size, []).append(row)
    return found


def best(curve: list[Row]) -> Row | None:
    return min((row for row in curve if not row.diverged), key=lambda row: row.loss, default=None)


def show(rows: list[Row]) -> None:
    """Print the losses, the best of each line marked, and what the best rate of the first size costs the others."""
    rates = sorted({row.lr for row in rows})
    print(f"\n{'loss':14s}" + "".join(f"{lr:>11.2e}" for lr in rates))
    for optimizer, title in OPTIMIZERS.items():
        found, transferred = curves(rows, optimizer), None
        for size, curve in found.items():
            top = best(curve)
            transferred = transferred or top
            cells = {row.lr: ("NaN" if math.isnan(row.loss) else "diverged") if row.diverged
                     else f"{row.loss:.4f}{'*' if row is top else ' '}" for row in curve}  # fmt: skip
            line = "".join(f"{cells.get(lr, ''):>11s}" for lr in rates)
            at = next((row for row in curve if transferred and row.lr == transferred.lr), None)
            cost = f"  {at.loss - top.loss:+.4f} at {at.lr:.2e}" if at and top else ""
            edge = "  (best at an end of the grid)" if top and top.lr in (curve[0].lr, curve[-1].lr) else ""
            print(f"{title:7s}{size:7s}{line}{cost}{edge}")


def panel(axes: Axes, found: dict[str, list[Row]], title: str, top: float) -> None:
    """Plot the loss over the learning rate, a line for each size; crosses at the top mark diverged models."""
    for (size, curve), (colour, marker, line) in zip(found.items(), STYLES):
        learnt, diverged = ([row for row in curve if row.diverged == which] for which in (False, True))
        axes.plot([row.lr for row in learnt], [row.loss for row in learnt], color=colour, marker=marker,
                  linestyle=line, label=f"{size.upper()}, width {curve[0].width}")  # fmt: skip
        axes.plot(
            [row.lr for row in diverged], [top] * len(diverged), color=colour, marker="x", linestyle="none"
        )
        if (lowest := best(curve)) is not None:
            axes.plot(lowest.lr, lowest.loss, color=colour, marker=marker, markersize=11, fillstyle="none")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="learning rate", title=title)
    axes.grid(alpha=0.3)
    if found:
        axes.legend()


def draw(folder: Path, rows: list[Row]) -> None:
    """Plot both optimisers side by side, on the same scale."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9.6, 4.0), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    top = 1.02 * max((row.loss for row in rows if not row.diverged), default=1.0)
    for axes, (optimizer, title) in zip(panels, OPTIMIZERS.items()):
        panel(axes, curves(rows, optimizer), f"{title}, {rows[0].steps} steps", top)
    panels[0].set_ylabel("loss of all latents at the end")
    figure.savefig(folder / "images/mup_transfer.png")


def points(args: argparse.Namespace, setting: Setting) -> Iterator[Point]:
    """The models to train: small sizes first, rates from the middle outwards; at the base width AdamW only."""
    middle = math.sqrt(min(args.lr) * max(args.lr))
    shapes = {size: SHAPES[size] for size in args.size}
    shapes |= {"x".join(map(str, shape)): shape for shape in args.shape}
    for size, (width, depth, heads) in sorted(shapes.items(), key=lambda item: item[1]):
        for lr in sorted(args.lr, key=lambda lr: abs(math.log(lr / middle))):
            for optimizer in OPTIMIZERS if width != setting.base_width else ["adamw"]:
                yield Point(
                    **asdict(setting), size=size, width=width, depth=depth, heads=heads,
                    optimizer=optimizer, lr=lr,
                )  # fmt: skip


def shape(words: str) -> tuple[int, int, int]:
    width, depth, heads = map(int, words.split(","))
    return width, depth, heads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=Path, required=True, help="folder of cached latents with labels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and for images/")
    parser.add_argument("--size", nargs="*", choices=SHAPES, default=["s", "xl"])
    parser.add_argument(
        "--shape", nargs="*", type=shape, default=[], help="further sizes, as width,depth,heads"
    )
    parser.add_argument("--lr", nargs="+", type=float, default=[2.0**-n for n in range(12, 6, -1)])
    parser.add_argument("--base-width", type=int, default=384, help="base width of muP")
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--warmup", type=int, default=25)
    parser.add_argument("--draws", type=int, default=2, help="draws of noise and time for each latent's loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile each block")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="time after which no further model is started"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args()


def main() -> None:
    args, start = arguments(), time.perf_counter()
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if args.precision == "auto":
        args.precision = "bf16" if multiplies_bf16_fast(device) else "fp32"
    args.data = digest(args.latents)
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    file = args.out / "mup_transfer.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    rows = read(file)
    planned = list(points(args, setting))
    data = read_latents(args.latents, device)
    print(f"{len(data.latents):,} latents of {data.classes} classes on {device}", flush=True)
    for point in planned:
        if point in {row.point for row in rows}:
            continue
        if time.perf_counter() - start > 60 * args.minutes:
            print(f"left out after {args.minutes:g} minutes; the same command continues", flush=True)
            break
        rows.append(measure(point, data, compiled=args.compile))
        write(file, rows)
        row = rows[-1]
        print(f"{row.size} {row.optimizer} lr {row.lr:.2e}: loss {row.loss:.4f} (zero {row.zero:.4f}), "
              f"{1e3 * row.seconds:.0f} ms a step", flush=True)  # fmt: skip
    if shown := [row for row in rows if row.point in planned]:
        show(shown)
        draw(args.out, shown)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
