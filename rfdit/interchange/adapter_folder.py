"""Trained adapters alone, in the forms that peft and diffusers read."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rfdit.checkpoint.registry import check_saved
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build, build_backbone
from rfdit.interchange.folder import check_free, read_described, write_description
from rfdit.interchange.for_diffusers.names import mmdit_stacks
from rfdit.interchange.naming import State
from rfdit.model import MMDiT
from rfdit.storage.atomic import write_folder_atomically
from rfdit.storage.folders import make_folder

PREFIX, THEIR_PREFIX = "backbone.", "base_model.model."  # of our names and of peft's
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # of peft
DESCRIPTION = "rfdit.json"  # which peft does not read: what `sample.py` needs to know of adapters
LORA = ".lora_A.default.weight"


def write_peft_folder(out: Path, saved: SavedRun, weights: str) -> None:
    """A folder for `peft.PeftModel.from_pretrained(backbone, out)`, with the backbone of the base, and for rfdit.

    Raises ValueError for a run without adapters.
    """
    tensors, adapter = _adapters(saved, weights, "peft")
    settings = adapter.settings().to_dict()
    settings = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in settings.items()}
    settings |= {"base_model_name_or_path": saved.base.ckpt if saved.base else None, "inference_mode": True}
    theirs = {f"{THEIR_PREFIX}{name.replace('.default', '')}": x for name, x in tensors.items()}

    def write(folder: Path) -> None:
        save_file(theirs, folder / TENSORS)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        write_description(folder / DESCRIPTION, saved, weights, folder / TENSORS)

    check_free(out)
    make_folder(out, setting="out")
    write_folder_atomically(out, write, durable=True)


def is_peft_folder(path: Path) -> bool:
    """True for a folder of peft's, whoever wrote it."""
    return (path / CONFIG).is_file()


def read_peft_folder(folder: Path) -> SavedRun:
    """The adapters in a folder of `write_peft_folder`.

    Raises ValueError for a folder that is damaged, or that rfdit did not write, and OSError for one that cannot be
    read.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"{folder} has adapters that rfdit did not export: it lacks {DESCRIPTION}, which says what they were "
            "trained on; give a run, or a folder of rfdit export format=peft"
        )
    return read_described(folder, DESCRIPTION, TENSORS, our_name=_our_name)


def _our_name(theirs: str) -> str:
    """The name of a tensor in a network that peft has changed: its last parts have the adapter's name in between."""
    found = re.fullmatch(rf"{re.escape(THEIR_PREFIX)}([\w.]+)\.((?:lora|hada|lokr)_\w+)(\.weight)?", theirs)
    if found is None:
        raise ValueError(f"{theirs[:100]} is not the name of a tensor of adapters")
    return f"{PREFIX}{found[1]}.{found[2]}.default{found[3] or ''}"


def write_diffusers_lora(out: Path, saved: SavedRun, weights: str) -> None:
    """`pytorch_lora_weights.safetensors` in a folder, for `load_lora_weights` of diffusers' StableDiffusion3Pipeline.

    Raises ValueError for adapters that are not plain LoRA on an MMDiT.
    """
    tensors, adapter = _adapters(saved, weights, "diffusers_lora")
    check_saved(saved, ("model", "prediction"))
    backbone = build_backbone(saved.config, empty=True)
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


def _adapters(saved: SavedRun, weights: str, form: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a run's adapters without our prefix, and their kind."""
    if saved.base is None:
        raise ValueError(f"format={form}: {saved.path} is a whole model, without adapters")
    check_saved(saved, ("adapter",))
    tensors = {n.removeprefix(PREFIX): x.contiguous() for n, x in saved.weights(weights).items()}
    return tensors, build(saved.config["adapter"])
