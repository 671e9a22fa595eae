"""Encode image shards to shards of cached latents: `rfdit encode out=FOLDER data.shards=...`."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from rfdit.checkpoint.resume import encoder_settings
from rfdit.config.build import build, validate
from rfdit.config.command import command
from rfdit.config.data_group import build_reader
from rfdit.counted import counted
from rfdit.data.latents.decoder import check_dtype
from rfdit.data.latents.encode import EncodePart, encode_missing, shard_names, summary
from rfdit.data.latents.encode_progress import EncodeProgress
from rfdit.data.latents.manifest import (
    MANIFEST,
    TEACHER,
    LatentManifest,
    arithmetic_of,
    read_manifest,
    update_manifest,
    weights_of,
)
from rfdit.data.latents.shard_encoder import Encoders, ShardEncoder, is_finished
from rfdit.data.sample import CacheDecoder, PairDecoder
from rfdit.device import pick_device
from rfdit.images import parse_size
from rfdit.processes.rank import Process, is_rank_zero, local_world_size
from rfdit.processes.signals import Stopped, StopSignal
from rfdit.protocols import TextEncoder
from rfdit.storage.atomic import remove_abandoned
from rfdit.storage.folders import make_folder
from rfdit.storage.locks import only_process
from rfdit.text_encoder.unread import TruncationCount

COUNTED_CAPTIONS = 1000  # as training counts, to tell how many are cut off


def this_part(config: dict[str, Any]) -> EncodePart:
    """Part `part` of `parts`, divided again among the processes that torchrun started."""
    part, parts = config["part"], config["parts"]
    if not 0 <= part < parts:
        raise ValueError(f"part={part} does not exist for parts={parts}; use 0 to {parts - 1}")
    process = Process.current()
    return EncodePart(part * process.world_size + process.rank, parts * process.world_size)


def check(config: dict[str, Any]) -> None:
    """Raises ValueError for settings whose latents cannot be cached."""
    data = config["data"]
    check_dtype(config["dtype"])
    if data.get("flip"):
        raise ValueError(
            "data.flip=true cannot be cached: latents are those of one crop; use data.flip=false"
        )


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
    """Encode this process's part of a validated configuration's shards, as far as they are missing.

    command: the shell command that encodes everything that is missing, for the manifest.
    stop: ends the work early by raising Stopped.
    Raises ValueError for unusable settings, if another process encodes this part, and at the end for shards that
    could not be read.
    """
    check(config)
    part = this_part(config)
    device = Process.current().device(pick_device(config["accelerator"], "accelerator"))
    data, out = config["data"], Path(config["out"]).expanduser()
    size = parse_size(data["resolution"], setting="data.resolution")
    reader, shards = build_reader(data, record_dead_links=False)
    known = read_manifest(str(out / MANIFEST)).shards if (out / MANIFEST).exists() else {}
    names = shard_names(shards, known)
    autoencoder, text_encoder = build(config["autoencoder"]), frozen_text_encoder(config["text_encoder"])
    teacher_node = config["auxiliary"] and config["auxiliary"]["teacher"]
    teacher = teacher_node and build(teacher_node)
    decoder, buckets = build(data["decoder"]), data.get("buckets") and build(data["buckets"])
    if isinstance(decoder, CacheDecoder):
        raise ValueError("data: there are no images to encode; data=latents is encoded already")
    if isinstance(decoder, PairDecoder) and decoder.rejected is not None:
        raise ValueError(
            "data=preferences has pairs of images, and latents are cached of single ones; train on the images, or give "
            "data.decoder.rejected=null for the preferred ones alone"
        )
    manifest = LatentManifest(
        latents=autoencoder.contract.as_dict(),
        resolution=list(size),
        buckets=buckets and [list(each) for each in buckets.sizes],
        dtype=config["dtype"],
        autoencoder=encoder_settings(config["autoencoder"]) or {},
        text_encoder=encoder_settings(config["text_encoder"]),
        teacher=encoder_settings(teacher_node),
        weights=weights_of("autoencoder", config["autoencoder"], autoencoder)
        | weights_of("text_encoder", config["text_encoder"], text_encoder)
        | weights_of(TEACHER, teacher_node, teacher),
        arithmetic=arithmetic_of(
            device, autoencoder=autoencoder, text_encoder=text_encoder, **{TEACHER: teacher}
        ),
        decoder=data["decoder"],
        filters=data["filters"],
        shards=names,
        command=command,
    )
    make_folder(out, setting="out")
    update_manifest(manifest, out)
    own, cut = part.of(sorted(names)), TruncationCount(text_encoder, most=COUNTED_CAPTIONS)
    with (
        only_process(out / part.lock, setting="out"),
        EncodeProgress(shards=len(own), shown=part.index == 0) as progress,
    ):
        remove_abandoned(out)
        encoder = ShardEncoder(
            out=out,
            reader=reader,
            decoder=decoder,
            filters=build(data["filters"]),
            size=size,
            buckets=buckets,
            num_workers=config["num_workers"],
            encoders=Encoders(
                moments=autoencoder.moments,
                text_encoder=text_encoder,
                teacher=teacher,
                device=device,
                batch_size=config["batch_size"],
                dtype=config["dtype"],
                count_captions=cut.add,
            ),
            progress=progress,
            stop=stop or StopSignal(),
        )
        failures = encode_missing(encoder, {name: names[name] for name in own})
    print(summary(encoder, own, part), flush=True)
    if is_rank_zero() and (sentence := cut.sentence()):
        print(sentence, flush=True)
    wait_for_others()
    if failures:
        raise ValueError(
            f"data.shards: {len(failures)} of {counted(len(own), 'shard')} could not be encoded, and the next run "
            f"tries again; {failures[0]}"
        )


def wait_for_others() -> None:
    """Wait until every process that torchrun started is done: it kills them all when one ends with an error."""
    process = Process.current()
    with process.group():
        process.barrier()


def command_line(overrides: Sequence[str], *, whole: bool) -> str:
    """The shell command of this run. whole: for all parts, to be typed in any folder."""
    module = ["-m", "rfdit", "encode"]
    if whole:
        shared = [override for override in overrides if not override.startswith(("part=", "parts="))]
        return f"cd {shlex.quote(os.getcwd())} && {shlex.join(['rfdit', 'encode', *shared])}"
    processes = local_world_size()
    start = ["python"] if processes is None else ["torchrun", f"--nproc-per-node={processes}"]
    return shlex.join([*start, *module, *overrides])


def _report_stopped(out: Path, command: str) -> None:
    manifest = out / MANIFEST
    shards = read_manifest(str(manifest)).shards if manifest.exists() else {}
    done = sum(is_finished(out, name, checksum=False) for name in shards)
    print(
        f"stopped with {done} of {counted(len(shards), 'shard')} in {out}; go on with: {command}", flush=True
    )


@command("encode")
def main(cfg: DictConfig) -> None:
    """The program `rfdit encode`."""
    torch.set_float32_matmul_precision("high")
    # A scheduler's SIGTERM ends the current shard like Ctrl-C, without an unfinished file.
    stop = StopSignal()
    stop.install()
    overrides = list(HydraConfig.get().overrides.task)
    if OmegaConf.select(cfg, "data.buckets") is not None:
        # The patches are those of a model that trains on the latents, and compares them then.
        OmegaConf.update(cfg, "data.buckets.token", ["${autoencoder.downsampling}"])
    try:
        encode(validate(cfg), command_line(overrides, whole=True), stop)
    except Stopped as stopped:
        if is_rank_zero():
            _report_stopped(Path(cfg.out).expanduser(), command_line(overrides, whole=False))
        raise SystemExit(128 + stopped.args[0]) from None
