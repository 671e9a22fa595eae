"""Trained adapters alone, in the forms that peft and diffusers read."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rfdit.checkpoint.registry import check_saved
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build, build_backbone
from rfdit.interchange.folder import check_free
from rfdit.interchange.for_diffusers.names import mmdit_stacks
from rfdit.interchange.naming import State
from rfdit.model import MMDiT
from rfdit.storage.atomic import write_folder_atomically
from rfdit.storage.folders import make_folder

PREFIX = "backbone."  # of our names
LORA = ".lora_A.default.weight"


def write_peft_folder(out: Path, saved: SavedRun, weights: str) -> None:
    """A folder for `peft.PeftModel.from_pretrained(backbone, out)`, with the backbone of the base.

    Raises ValueError for a run without adapters.
    """
    tensors, adapter, _ = _adapters(saved, weights, "peft")
    settings = adapter.settings().to_dict()
    settings = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in settings.items()}
    settings |= {"base_model_name_or_path": saved.base.ckpt if saved.base else None, "inference_mode": True}
    theirs = {f"base_model.model.{name.replace('.default', '')}": x for name, x in tensors.items()}

    def write(folder: Path) -> None:
        save_file(theirs, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    check_free(out)
    make_folder(out, setting="out")
    write_folder_atomically(out, write, durable=True)


def write_diffusers_lora(out: Path, saved: SavedRun, weights: str) -> None:
    """`pytorch_lora_weights.safetensors` in a folder, for `load_lora_weights` of diffusers' StableDiffusion3Pipeline.

    Raises ValueError for adapters that are not plain LoRA on an MMDiT.
    """
    tensors, adapter, backbone = _adapters(saved, weights, "diffusers_lora")
    if type(backbone) is not MMDiT:
        raise ValueError("format=diffusers_lora has the names of SD3, which model=mmdit has; use format=peft")
    if any(".lora_" not in name or "magnitude" in name for name in tensors):
        raise ValueError(
            "format=diffusers_lora is for plain LoRA; use format=peft, or export the merged model"
        )
    scale = adapter.alpha / (adapter.r**0.5 if adapter.rank_stabilized else adapter.r)
    theirs = {f"transformer.{name}": x for name, x in as_sd3(backbone, tensors, scale).items()}

    def write(folder: Path) -> None:
        save_file(theirs, folder / "pytorch_lora_weights.safetensors")

    check_free(out)
    make_folder(out, setting="out")
    write_folder_atomically(out, write, durable=True)


def as_sd3(backbone: MMDiT, tensors: State, scale: float) -> State:
    """LoRA of an MMDiT under the names of SD3Transformer2DModel.

    A fused layer's A goes to all of its parts, and its B is divided by rows: (B A)[rows] = B[rows] A. B is
    multiplied by `scale`, alpha / r, so that readers which take alpha = r compute the same.
    """
    stream: Any = backbone.blocks[0].x
    depth, qk_norm = len(backbone.blocks), stream.qk_norm is not None
    stacks = {stack.ours: stack for stack in mmdit_stacks(depth, qk_norm=qk_norm)}
    found: State = {}
    for name, a in tensors.items():
        if not name.endswith(LORA):
            continue
        layer = name.removesuffix(LORA)
        stack = stacks.get(f"{PREFIX}{layer}.weight")
        b = scale * tensors[name.replace("lora_A", "lora_B")]
        if stack is None or stack.swapped or len(b) % len(stack.theirs):
            raise ValueError(f"format=diffusers_lora has no name for the adapter of {layer}; use format=peft")
        for theirs, rows in zip(stack.theirs, b.chunk(len(stack.theirs)), strict=True):
            their_layer = theirs.removesuffix(".weight")
            found[f"{their_layer}.lora_A.weight"] = a.clone()
            found[f"{their_layer}.lora_B.weight"] = rows.contiguous()
    return found


def _adapters(saved: SavedRun, weights: str, form: str) -> tuple[dict[str, Tensor], Any, Any]:
    """The tensors of a run's adapters without our prefix, their kind, and the backbone without memory."""
    if saved.base is None:
        raise ValueError(f"format={form}: {saved.path} is a whole model, without adapters")
    check_saved(saved, ("model", "prediction", "adapter"))
    with torch.device("meta"):
        backbone = build_backbone(saved.config)
    tensors = {n.removeprefix(PREFIX): x.contiguous() for n, x in saved.weights(weights).items()}
    return tensors, build(saved.config["adapter"]), backbone
