"""Weights with their settings: checkpoints, exported folders, snapshots, and the weights of others."""

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import rfdit
from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.checkpoint.saved_run import read_checkpoint, read_raw
from rfdit.checkpoint.sharded import new_folder, write_sharded
from rfdit.commands.export import write_safetensors
from rfdit.interchange.for_diffusers.folder import write_diffusers_folder
from rfdit.interchange.published.layout import LAYOUTS, to_published
from rfdit.interchange.source import open_model
from rfdit.pretrained.frozen import state_digest
from rfdit.storage.checksum import json_digest
from tests.support.commands.processes import SETTINGS
from tests.support.training.checkpoints import write_checkpoint
from tests.system.drill.kind import Kind, digest, digest_files, run
from tests.system.drill.mutations import odd_tree

LABELS = ["model=dit", "conditioner=labels", "conditioner.num_classes=5"]
POWER = [
    "ema=power",
    "callbacks.ema.snapshots.every_n_steps=2",
    "trainer.max_steps=6",
    "schedule.warmup_steps=0",
]


def load(path: str) -> Any:
    """The weights, and an image of them."""
    model = rfdit.load(path, accelerator="cpu")
    image = model(0 if model.knows_labels else "a red circle", steps=1)[0]
    return model.saved.step, state_digest(model.saved.weights("ema")), digest(image.tobytes())


def forge_checkpoint(file: Path, draw: Random) -> None:
    """An odd value among the settings, or anywhere, in an archive that is whole."""
    raw = torch.load(file, map_location="cpu", weights_only=True)
    if draw.random() < 0.6:
        raw["rfdit"] = odd_tree(raw["rfdit"], draw)
    else:
        raw = odd_tree(raw, draw)
    torch.save(raw, file)


def forge_description(file: Path, draw: Random) -> None:
    """An odd value in config.json, under the right checksum."""
    description = json.loads(file.read_text())
    del description["sha256"]
    description = odd_tree(description, draw)
    if isinstance(description, dict):
        description["sha256"] = json_digest(description, digits=64)
    file.write_text(json.dumps(description))


def forge_weights(file: Path, draw: Random) -> None:
    """Tensors of other shapes, types and values."""
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    name = draw.choice(sorted(state))
    tensor = state[name]
    state[name] = draw.choice(
        [
            tensor * float("nan"), tensor * 1e30, tensor.flatten(), tensor[:0], torch.zeros(()), tensor.double(),
            tensor.to(torch.int8), tensor[..., :-1].contiguous() if tensor.ndim else tensor, torch.zeros(7, 7, 7),
        ]
    )  # fmt: skip
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)


def make_exported(*overrides: str) -> None:
    write_safetensors(Path("model"), write_checkpoint(Path("run.ckpt"), *overrides), "ema")


def make_diffusers() -> None:
    write_diffusers_folder(Path("model"), write_checkpoint(Path("run.ckpt"), *LABELS), "ema")


def make_checkpoint(*overrides: str) -> None:
    write_checkpoint(Path("run.ckpt"), *overrides)


def export_again() -> Any:
    run("export", "ckpt=model", "out=out", "format=diffusers")
    return digest_files("out/*/*.safetensors")


def make_sharded() -> None:
    import torch.distributed as dist

    write_checkpoint(Path("one.ckpt"))
    dist.init_process_group("gloo", init_method=f"file://{Path.cwd()}/rendezvous", rank=0, world_size=1)
    folder = Path(new_folder(Path("run.ckpt"), 7))
    folder.mkdir()
    write_sharded(read_raw(Path("one.ckpt")), Path("run.ckpt"), folder)
    dist.destroy_process_group()
    Path("one.ckpt").unlink()


def read_average() -> Any:
    run("posthoc", "ckpt=run", "std=0.08", "out=out.ckpt")
    made = read_checkpoint(Path("out.ckpt"))
    return made.step, state_digest(made.weights("ema"))


def forge_snapshot(file: Path, draw: Random) -> None:
    """Other metadata than was written."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    name = draw.choice(sorted(metadata))
    metadata[name] = draw.choice(["", "nan", "-1", "1e30", "x", "99999999999999999999999", "0.05"])
    save_file(load_file(file), file, metadata)


def make_published() -> None:
    saved = write_checkpoint(
        Path("run.ckpt"), *LABELS, "model.in_channels=4", "model.input_size=4", "model.patch_size=2"
    )
    theirs = to_published(saved.weights("ema"), LAYOUTS["sit"], saved.config["model"])
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, "theirs.safetensors")
    torch.save({"ema": theirs}, "theirs.pt")
    Path("run.ckpt").unlink()


def read_published_file(name: str) -> Any:
    run("convert", "source=sit", f"file={name}", "out=out", "num_heads=2", "autoencoder=sd")
    return digest_files("out/*", without=["README.md"])


def make_autoencoder() -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
    ).save_pretrained("vae")  # fmt: skip


def read_autoencoder() -> Any:
    autoencoder = DiffusersAutoencoder(
        source="vae", name="sd", latent_channels=4, downsampling=2, scale=0.18215, shift=0.0, dtype="fp32"
    )
    return digest(autoencoder.decode(torch.ones(1, 4, 4, 4)))


def read_pipeline() -> Any:
    """An image by diffusers alone, after rfdit has said that it does not read such folders."""
    from diffusers import DiffusionPipeline

    with contextlib.suppress(ValueError):
        open_model("model")
    pipeline = DiffusionPipeline.from_pretrained("model", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return digest(pipeline(0, num_inference_steps=1).images[0].tobytes())


def make_run(*overrides: str) -> None:
    run("train", "run_dir=run", *SETTINGS, "data.batch_size=2", *overrides)


KINDS = [
    Kind(
        "checkpoint",
        make_checkpoint,
        lambda: load("run.ckpt"),
        ["run.ckpt"],
        forge={"*.ckpt": forge_checkpoint},
        weight=2,
    ),
    Kind(
        "checkpoint of labels",
        lambda: make_checkpoint(*LABELS),
        lambda: load("run.ckpt"),
        ["run.ckpt"],
        forge={"*.ckpt": forge_checkpoint},
    ),
    Kind("sharded checkpoint", make_sharded, lambda: load("run.ckpt"), ["run*.shards/*"], alias="run.ckpt"),
    Kind(
        "exported folder",
        make_exported,
        lambda: load("model"),
        ["model/config.json", "model/model.safetensors"],
        forge={"config.json": forge_description},
        weight=2,
    ),
    Kind(
        "exported folder exported again",
        make_exported,
        export_again,
        ["model/config.json", "model/model.safetensors"],
        forge={"config.json": forge_description},
        weight=0.5,
    ),
    Kind(
        "diffusers folder",
        make_diffusers,
        read_pipeline,
        ["model/*.json", "model/*/*"],
        guarded=False,
        foreign=True,
        weight=0.5,
    ),
    Kind(
        "snapshots of averages",
        lambda: make_run(*POWER),
        read_average,
        ["run/ema/*.safetensors"],
        forge={"*.safetensors": forge_snapshot},
    ),
    Kind(
        "published weights",
        make_published,
        lambda: read_published_file("theirs.safetensors"),
        ["theirs.safetensors"],
        guarded=False,
        forge={"*.safetensors": forge_weights},
    ),
    Kind(
        "published weights of torch",
        make_published,
        lambda: read_published_file("theirs.pt"),
        ["theirs.pt"],
        guarded=False,
    ),
    Kind(
        "autoencoder of diffusers",
        make_autoencoder,
        read_autoencoder,
        ["vae/*"],
        guarded=False,
        forge={"*.safetensors": forge_weights},
    ),
]
