"""Pictures from a checkpoint: compose, validate, load, sample, write."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from PIL.PngImagePlugin import PngInfo
from rich.progress import Progress
from torch import Tensor

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, build_network, register, validate
from rfdit.grid import captioned_grid, to_pil
from rfdit.network import Network
from rfdit.sampler import Pipeline
from rfdit.training.checkpoint import SavedRun, find_checkpoint, newest_run, read_checkpoint
from rfdit.training.run_folder import environment
from rfdit.training.trainer import pick_device, pick_precision


@dataclass(frozen=True)
class Request:
    """What to make: one entry per picture."""

    inputs: Sequence[str] | Sequence[int]
    captions: Sequence[str]


def open_checkpoint(ckpt: str | None) -> SavedRun:
    """The checkpoint that `ckpt` names; raises ValueError with what to write if it is not given."""
    if ckpt is None:
        newest = newest_run(Path("outputs"))
        hint = f"; the newest run here is ckpt={newest}" if newest else ""
        raise ValueError(f"ckpt is not set; give ckpt=RUN_FOLDER or a .ckpt file{hint}")
    return read_checkpoint(find_checkpoint(ckpt))


def load_network(saved: SavedRun, config: dict[str, Any], weights: str) -> Network:
    """The saved network with its raw weights, or those of the average of a name."""
    state = saved.weights(weights)
    network = build_network(config)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def load_pipeline(saved: SavedRun, config: dict[str, Any]) -> Pipeline:
    """The pipeline that `sample.yaml` asks for, around the saved network."""
    trained = json.loads(json.dumps(saved.config))  # a copy: the encoders' places may change below
    for encoder in ("autoencoder", "text_encoder"):
        if config[encoder]["source"] is not None:
            trained[encoder]["source"] = config[encoder]["source"]
    if "encoder" in trained["conditioner"]:
        trained["conditioner"]["encoder"] = trained["text_encoder"]
    device = pick_device(config["accelerator"], "accelerator")
    size = trained["model"]["input_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Pipeline(
        network=load_network(saved, trained, config["weights"]).to(device),
        autoencoder=build(trained["autoencoder"]),
        sampler=build(config["sampler"]),
        latent_shape=(trained["model"]["in_channels"], height, width),
        device=device,
        bf16=pick_precision(config["precision"], device, "precision") == "bf16-mixed",
        batch_size=config["batch_size"],
    )


def read_request(config: dict[str, Any]) -> Request | None:
    """Prompts inline, from a text file with one per line, or class labels; None if there are none."""
    prompts, labels, count = config["prompts"], config["labels"], config["count"]
    if prompts is not None and labels is not None:
        raise ValueError("prompts and labels are both set; give the one that the model was trained with")
    if isinstance(prompts, str):
        path = Path(prompts)
        if not path.is_file():
            raise ValueError(
                f"prompts={prompts} is no file; for one prompt inline write 'prompts=[{prompts}]'"
            )
        prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if prompts is not None and not (isinstance(prompts, list) and prompts):
        raise ValueError(f"prompts={prompts} names no prompt; give a list, or a text file with one per line")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    prompts = prompts and [str(prompt) for prompt in prompts]
    inputs = [item for item in prompts or labels or [] for _ in range(count)]
    return Request(inputs, [str(item) for item in inputs]) if inputs else None


def check_inputs(saved: SavedRun, config: dict[str, Any]) -> None:
    """Raises ValueError for prompts where the model knows labels, and the other way round."""
    knows_labels = "num_classes" in saved.config["conditioner"]
    if knows_labels and (config["prompts"] is not None or config["negative"] is not None):
        raise ValueError(f"ckpt={saved.path} was trained on class labels; give labels=[0,1] and no prompts")
    if not knows_labels and config["labels"] is not None:
        raise ValueError(f"ckpt={saved.path} was trained on captions; give 'prompts=[...]' and no labels")


def write_pictures(
    folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request, settings: dict[str, Any]
) -> None:
    """Single PNGs, grid.png and samples.json; every PNG holds what is needed to make it again."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, (image, given) in enumerate(zip(images, request.inputs)):
        entry = {"file": f"{i:05d}.png", "input": given, "key": settings["config"]["first_key"] + i}
        info = PngInfo()
        info.add_itxt("prompt", str(given))
        info.add_itxt("rfdit", json.dumps(settings | entry))
        to_pil(image).save(folder / f"{i:05d}.png", pnginfo=info)
        entries.append(entry)
    (folder / "samples.json").write_text(json.dumps(settings | {"samples": entries}, indent=2) + "\n")
    captioned_grid(images, request.captions, columns=settings["config"]["columns"]).save(folder / "grid.png")


def sample(cfg: DictConfig) -> Path | None:
    """One call of `sample.py`; returns the folder of the pictures."""
    config = validate(cfg)
    request = read_request(config)
    evaluation = build(config["eval"]) if config["eval"] else None
    if request is None and evaluation is None:
        raise ValueError(
            "prompts is not set; give 'prompts=[a red circle, a blue star]', prompts=FILE, labels=[0,1], or eval=..."
        )
    saved = open_checkpoint(config["ckpt"])
    check_inputs(saved, config)
    pipeline = load_pipeline(saved, config)
    folder = None
    if request is not None:
        folder = Path(config["out"] or _default_folder(saved.path))
        with Progress() as progress:
            task = progress.add_task("sampling", total=len(request.inputs))
            images = pipeline(
                request.inputs,
                seed=config["seed"],
                first_key=config["first_key"],
                negative=config["negative"],
                on_batch=lambda done: progress.update(task, completed=done),
            )
        settings = {"checkpoint": str(saved.path), "step": saved.step, "config": config}
        write_pictures(folder, images, request, settings | {"environment": environment()})
        print(f"{len(images)} pictures in {folder}, together in {folder / 'grid.png'}", flush=True)
    if evaluation is not None:
        values = evaluation(pipeline, seed=config["seed"])
        print(f"{evaluation.name}: " + " ".join(f"{k}={v:.2f}" for k, v in values.items()), flush=True)
    return folder


def _default_folder(checkpoint: Path) -> Path:
    """A folder by date and time, in the run folder if the checkpoint lies in one."""
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return run / "samples" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


@hydra.main(config_path=str(CONFIG_DIR), config_name="sample", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with explain_errors("sample", ValueError, OSError):
        sample(cfg)


def main() -> None:
    """The entry of `sample.py` and of `python -m rfdit.sample`."""
    register()
    with explain_errors("sample"):
        _main()


if __name__ == "__main__":
    main()
