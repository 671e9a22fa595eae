"""Any source as tar shards: fetch once, train for ever. Run as python -m rfdit.data.pack."""

import fcntl
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, register, validate
from rfdit.data.decode import IMAGE_EXTENSIONS, decode_image, image_size
from rfdit.data.rot import RotCounts, write_json
from rfdit.data.sample import RawSample
from rfdit.data.shards import resolve_shards
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.source import Source
from rfdit.data.unfinished_files import remove_abandoned
from rfdit.data.write_tar import write_tar

CHECKED_SIZE = (64, 64)  # to which images are decoded to see whether they can be

# Causes that are the network's and not the URL's.
OUTAGE = {SkipReason.FETCH_CONNECTION, SkipReason.FETCH_TIMEOUT}


@dataclass(frozen=True)
class Packing:
    """What is packed, and where to.

    out: a folder. A shard NUMBER.tar there is made of a fixed range of the source's numbers;
        NUMBER.json beside it says that it is done, and what became of the range.
    plan: what the ranges depend on; another plan does not fit into the same folder.
    """

    source: Source
    out: Path
    samples_per_shard: int
    verify: bool
    plan: dict[str, Any]

    @property
    def ranges(self) -> list[range]:
        """The numbers of each shard."""
        total, size = sum(self.source.shard_sizes), self.samples_per_shard
        return [range(first, min(first + size, total)) for first in range(0, total, size)]

    def done(self, shard: int) -> Path:
        """What exists when a shard is done."""
        return self.out / f"{shard:05d}.json"


def plan_packing(cfg: DictConfig) -> Packing:
    """Opens the source that a configuration describes.

    Raises ValueError, naming the setting, if it cannot be packed.
    """
    OmegaConf.set_struct(cfg, False)
    # Not all of the group is built, so its parts are checked and not the whole.
    cfg.data.pop("_target_", None)
    config = validate(cfg)
    data = config["data"]
    if missing := [name for name in ("shards", "reader", "filters") if name not in data]:
        raise ValueError(
            f"data.{missing[0]} is not set; packing needs data.shards, data.reader and data.filters"
        )
    if config["samples_per_shard"] < 1:
        raise ValueError(f"samples_per_shard={config['samples_per_shard']} must be at least 1")
    if "rot" in data["reader"]:
        data["reader"]["rot"] = None  # a resumed run would count URLs twice; here each shard has its counts
    reader, filters = build(data["reader"]), build(data["filters"])
    given = build(data["shards"]) if isinstance(data["shards"], dict) else data["shards"]
    shards = resolve_shards(given, suffixes=reader.suffixes)
    source = reader(shards, filters=filters)
    plan = {
        "shards": [[shard, *_marks(shard)] for shard in shards],
        "columns": data["reader"].get("columns"),
        "filters": filters.settings,
        "samples": sum(source.shard_sizes),
        "samples_per_shard": config["samples_per_shard"],
        "verify": config["verify"],
    }
    out = Path(config["out"]).expanduser()
    return Packing(source, out, config["samples_per_shard"], config["verify"], json.loads(json.dumps(plan)))


def _marks(shard: str) -> list[int]:
    """What changes when a local shard does."""
    if not os.path.isfile(shard):
        return []
    status = os.stat(shard)
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def only_packer(out: Path) -> Iterator[None]:
    """Holds the folder; raises ValueError if another process does. A process that is killed lets go."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pack.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"out={out} is being packed by another process; let it finish, or give another out"
            ) from None
        yield


def _keep_plan(out: Path, plan: dict[str, Any]) -> None:
    """Writes down what is packed, or holds it against what was."""
    path = out / "pack.json"
    if path.exists():
        known = json.loads(path.read_text())
        if different := [name for name in plan if plan[name] != known.get(name)]:
            raise ValueError(
                f"out={out} was packed with other {', '.join(different)}, as its pack.json says; give another out"
            )
    elif any(out.glob("*.tar")):
        raise ValueError(f"out={out} has shards already that were not packed here; give another out")
    write_json(path, plan)


def pack(cfg: DictConfig) -> Path:
    """One run of the command: packs what is not packed yet; returns the folder of the shards.

    Raises ValueError as `plan_packing`, or if `out` holds something else, or is being packed.
    """
    packing = plan_packing(cfg)
    with only_packer(packing.out):
        _keep_plan(packing.out, packing.plan)
        remove_abandoned(packing.out)
        _pack_rest(packing)
        print(report(packing), flush=True)
    return packing.out


def _pack_rest(packing: Packing) -> None:
    todo = [shard for shard in range(len(packing.ranges)) if not packing.done(shard).exists()]
    columns = [
        TextColumn("packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    ]
    # One stream for all shards, so that fetching goes on from one to the next.
    ranges = packing.ranges
    samples = iter(packing.source.samples(itertools.chain.from_iterable(ranges[shard] for shard in todo)))
    with Progress(*columns) as progress:
        total = sum(map(len, ranges))
        task = progress.add_task("", total=total, completed=total - sum(len(ranges[shard]) for shard in todo))
        for shard in todo:
            mine = itertools.islice(samples, len(ranges[shard]))
            pack_shard(packing, shard, _advancing(progress, task, mine))


def _advancing(
    progress: Progress, task: TaskID, samples: Iterable[RawSample | SkippedSampleError]
) -> Iterator[RawSample | SkippedSampleError]:
    """The samples; the bar moves with each that is done."""
    for sample in samples:
        yield sample
        progress.advance(task)


def pack_shard(packing: Packing, shard: int, samples: Iterable[RawSample | SkippedSampleError]) -> None:
    """Writes one shard, if anything survived, and what became of the rest."""
    counts = RotCounts()

    def survivors() -> Iterator[RawSample]:
        for sample in samples:
            try:
                yield usable(sample, verify=packing.verify)
            except SkippedSampleError as error:
                counts.add(getattr(error, "url", ""), str(error.reason))
            else:
                counts.add("", None)

    written = write_tar(packing.out / f"{shard:05d}.tar", survivors())
    dead = counts.as_dict()["dead"]
    if not written and dead and dead.keys() <= OUTAGE:
        raise ValueError(
            f"data.shards: of the {sum(dead.values())} URLs of shard {shard} none could be reached; is the network "
            "down? The shard is left for the next call"
        )
    write_json(packing.done(shard), counts.as_dict())


def usable(sample: RawSample | SkippedSampleError, *, verify: bool) -> dict[str, str | bytes]:
    """The sample; its JSON, if it has one, tells the image's true size.

    verify: whether the image must decode.
    Raises SkippedSampleError for one that cannot be used.
    """
    if isinstance(sample, SkippedSampleError):
        raise sample
    name = next((extension for extension in IMAGE_EXTENSIONS if extension in sample), None)
    if name is None:
        raise SkippedSampleError(SkipReason.MISSING_IMAGE)
    files, image = dict(sample), cast(bytes, sample[name])
    if verify:
        decode_image(image, CHECKED_SIZE)
        if "json" in files:
            about = _metadata(files["json"])
            if size := image_size(image):
                about |= {"height": size[0], "width": size[1]}
            files["json"] = json.dumps(about, ensure_ascii=False).encode()
    return files


def _metadata(data: str | bytes) -> dict[str, Any]:
    """A sample's JSON; nothing, if it is damaged or no object."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def report(packing: Packing) -> str:
    """Writes rot.json over all shards that are done, and says the same in a line."""
    counts = RotCounts()
    for shard in range(len(packing.ranges)):
        if packing.done(shard).exists():
            counts.merge(json.loads(packing.done(shard).read_text()))
    counts.write(packing.out / "rot.json")
    shards = list(packing.out.glob("*.tar"))
    return f"{counts.summary()}; they are in {len(shards)} shards in {packing.out}, and rot.json tells of the dead"


@hydra.main(config_path=str(CONFIG_DIR), config_name="pack", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("pack", ValueError, OSError):
        try:
            pack(cfg)
        except KeyboardInterrupt:
            done = len(list(Path(cfg.out).expanduser().glob("[0-9]*.json")))
            print(f"stopped with {done} whole shards in {cfg.out}; the same command goes on", flush=True)
            raise SystemExit(130) from None


def main() -> None:
    """The entry of `python -m rfdit.data.pack`."""
    register()
    with explain_errors("pack"):
        _main()


if __name__ == "__main__":
    main()
