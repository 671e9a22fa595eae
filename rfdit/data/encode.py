"""Image shards to shards of cached latents: `python -m rfdit.data.encode out=FOLDER ...`."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, register, validate
from rfdit.data.encode_progress import EncodeProgress
from rfdit.data.latent_manifest import (
    MANIFEST,
    LatentManifest,
    agree,
    arithmetic_of,
    read_manifest,
    weights_of,
)
from rfdit.data.latent_names import shard_names
from rfdit.data.latents import check_dtype
from rfdit.data.shard_encoder import Encoders, ShardEncoder, ShardError, is_finished, listed
from rfdit.data.shards import resolve_shards
from rfdit.data.stop_signal import Stopped, StopSignal
from rfdit.data.unfinished_files import remove_abandoned
from rfdit.protocols import TextEncoder
from rfdit.training.checkpoint import EQUIVALENT
from rfdit.training.device import pick_device

LONGEST = timedelta(days=30)  # that processes wait for each other


@dataclass(frozen=True)
class Share:
    """One of `count` equal shares of the shards."""

    index: int
    count: int

    def of(self, names: Sequence[str]) -> Sequence[str]:
        """Its part of all shards, finished or not: processes that start at different times must agree."""
        return names[self.index :: self.count]


def this_share(config: dict[str, Any]) -> Share:
    """What `part` of `parts` says, divided again among the processes that torchrun started."""
    part, parts = config["part"], config["parts"]
    if not 0 <= part < parts:
        raise ValueError(f"part={part} is none of parts={parts}, which are numbered from 0 to {parts - 1}")
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    return Share(part * world + rank, parts * world)


def this_device(accelerator: str) -> torch.device:
    """The device of this process; under torchrun, each has a GPU of its own."""
    device = pick_device(accelerator, "accelerator")
    if device.type != "cuda":
        return device
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= there:
        raise ValueError(
            f"torchrun has started more processes than the {there} GPUs here; lower --nproc-per-node"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def check(config: dict[str, Any]) -> None:
    """Raises ValueError for what cannot be cached."""
    data = config["data"]
    check_dtype(config["dtype"])
    if config["batch_size"] < 1:
        raise ValueError(f"batch_size={config['batch_size']} must be at least 1")
    if data.get("flip"):
        raise ValueError(
            "data.flip=true cannot be cached: latents are those of one crop; use data.flip=false"
        )
    check_buckets(data.get("buckets"))


def check_buckets(buckets: object) -> None:
    """Raises ValueError for any."""
    if buckets is not None:
        raise ValueError(
            "buckets=aspect cannot be cached: all latents of a cache are of one data.resolution; use buckets=none"
        )


def identity(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of an encoder that decide what it computes."""
    places = EQUIVALENT | {"slice_size", "pretrained"}  # the weights are known by their digest
    return node and {name: value for name, value in node.items() if name not in places}


def image_size(resolution: int | Sequence[int]) -> tuple[int, int]:
    """(height, width)."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return height, width


def frozen_text_encoder(node: dict[str, Any] | None) -> TextEncoder | None:
    """The text encoder; raises ValueError for one that is trained, whose features change."""
    encoder = None if node is None else build(node)
    if isinstance(encoder, nn.Module) and any(p.requires_grad for p in encoder.parameters()):
        raise ValueError(
            f"text_encoder={type(encoder).__name__} is trained with the model, so its features cannot be "
            "cached; leave text_encoder out, and captions are encoded while training"
        )
    return encoder


def encode(config: dict[str, Any], command: str = "", stop: StopSignal | None = None) -> None:
    """Encodes this process's share of a validated configuration's shards, as far as they are missing.

    command: what a shell has to run to encode all that is missing, for the manifest.
    stop: what may end it early, by raising Stopped.
    Raises ValueError for settings that cannot be, and at the end for shards that could not be read.
    """
    check(config)
    share, device = this_share(config), this_device(config["accelerator"])
    data, out, size = (
        config["data"],
        Path(config["out"]).expanduser(),
        image_size(config["data"]["resolution"]),
    )
    if "rot" in data["reader"]:
        data["reader"]["rot"] = None  # each shard's report has its counts
    reader, shards = build(data["reader"]), data["shards"]
    given = build(shards) if isinstance(shards, dict) else shards
    known = read_manifest(str(out / MANIFEST)).shards if (out / MANIFEST).exists() else {}
    names = shard_names(resolve_shards(given, suffixes=reader.suffixes), known)
    autoencoder, text_encoder = build(config["autoencoder"]), frozen_text_encoder(config["text_encoder"])
    decoder = build(data["decoder"])
    decoder.check(list(names.values()), size)
    manifest = LatentManifest(
        latents=autoencoder.contract.as_dict(),
        resolution=list(size),
        dtype=config["dtype"],
        autoencoder=identity(config["autoencoder"]) or {},
        text_encoder=identity(config["text_encoder"]),
        weights=weights_of("autoencoder", config["autoencoder"], autoencoder)
        | weights_of("text_encoder", config["text_encoder"], text_encoder),
        arithmetic=arithmetic_of(device, autoencoder=autoencoder, text_encoder=text_encoder),
        decoder=data["decoder"],
        filters=data["filters"],
        shards=names,
        command=command,
    )
    agree(manifest, out)
    remove_abandoned(out)
    mine = share.of(sorted(names))
    with EncodeProgress(shards=len(mine), shown=share.index == 0) as progress:
        encoder = ShardEncoder(
            out=out,
            reader=reader,
            decoder=decoder,
            filters=build(data["filters"]),
            size=size,
            num_workers=config["num_workers"],
            encoders=Encoders(
                moments=autoencoder.moments,
                text_encoder=text_encoder,
                device=device,
                batch_size=config["batch_size"],
                dtype=config["dtype"],
            ),
            progress=progress,
            stop=stop or StopSignal(),
        )
        failures = encode_missing(encoder, {name: names[name] for name in mine})
    tell(encoder, mine, share)
    wait_for_others()
    if failures:
        raise ValueError(
            f"data.shards: {len(failures)} of {len(mine)} shards could not be encoded, and the next run tries "
            f"them again; {failures[0]}"
        )


def encode_missing(encoder: ShardEncoder, shards: dict[str, str]) -> list[str]:
    """Encodes the shards that are not there yet, or have changed since; returns why some could not be."""
    failures, outdated = [], set()
    for name in filter(encoder.finished, shards):
        try:
            if encoder.outdated(name, shards[name]):
                outdated.add(name)
        except ShardError as error:
            failures.append(str(error))
    if outdated:
        print(
            f"{len(outdated)} shards seem to have changed since they were encoded, and are read again",
            flush=True,
        )
    missing = [name for name in shards if name in outdated or not encoder.finished(name)]
    encoder.progress.start(finished=len(shards) - len(missing))
    for name in missing:
        try:
            with encoder.stop.deferred():
                encoder(name, shards[name])
        except ShardError as error:  # one bad shard must not end a job of thousands
            failures.append(str(error))
        encoder.progress.next_shard()
    return failures


def tell(encoder: ShardEncoder, names: Sequence[str], share: Share) -> None:
    """What became of every sample of this process's shards, those of earlier runs included."""
    reports = [encoder.report(name) for name in names if encoder.finished(name)]
    skipped = sum((Counter(report["skipped"]) for report in reports), Counter())
    samples = sum(report["samples"] for report in reports)
    part = f"part {share.index} of {share.count}: " if share.count > 1 else ""
    left_out = f"; left out: {listed(skipped)}" if skipped else ""
    print(f"{part}{samples:,} samples in {len(reports)} shards are in {encoder.out}{left_out}", flush=True)


def wait_for_others() -> None:
    """Until every process that torchrun started is done: it ends them all when one ends with an error."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo", timeout=LONGEST)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def command_line(overrides: Sequence[str], *, whole: bool) -> str:
    """The command that was given; `whole`: that does what is left of all parts, from any folder."""
    module = ["-m", "rfdit.data.encode"]
    if whole:
        kept = [override for override in overrides if not override.startswith(("part=", "parts="))]
        return f"cd {shlex.quote(os.getcwd())} && {shlex.join(['python', *module, *kept])}"
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    start = ["python"] if processes is None else ["torchrun", f"--nproc-per-node={processes}"]
    return shlex.join([*start, *module, *overrides])


def _tell_stopped(out: Path, command: str) -> None:
    place = out / MANIFEST
    shards = read_manifest(str(place)).shards if place.exists() else {}
    done = sum(is_finished(out, name) for name in shards)
    print(f"stopped with {done} of {len(shards)} shards in {out}; go on with: {command}", flush=True)


@hydra.main(config_path=str(CONFIG_DIR), config_name="encode", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A scheduler's SIGTERM ends the shard at hand like Ctrl-C, without an unfinished file.
    stop = StopSignal()
    stop.install()
    overrides = list(HydraConfig.get().overrides.task)
    with explain_errors("encode", ValueError, OSError):
        check_buckets(OmegaConf.select(cfg, "data.buckets"))  # it asks for settings that only a model has
        try:
            encode(validate(cfg), command_line(overrides, whole=True), stop)
        except Stopped as stopped:
            if int(os.environ.get("RANK", 0)) == 0:
                _tell_stopped(Path(cfg.out).expanduser(), command_line(overrides, whole=False))
            raise SystemExit(128 + stopped.args[0]) from None


def main() -> None:
    """The entry of `python -m rfdit.data.encode`."""
    register()
    with explain_errors("encode"):
        _main()


if __name__ == "__main__":
    main()
