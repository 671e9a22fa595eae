"""A folder from which diffusers alone makes the same pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rfdit.autoencoder.pretrained import load_pretrained
from rfdit.config import build
from rfdit.interchange import shipped
from rfdit.interchange.card import model_card
from rfdit.interchange.clip_tokenizer import write_clip_tokenizer
from rfdit.interchange.diffusers_names import (
    dit_norm_stacks,
    dit_stacks,
    mmdit_stacks,
    pooled_stacks,
    positions_stack,
    repeat_embedding,
)
from rfdit.interchange.folder import CARD, check_free
from rfdit.interchange.naming import State, check_weights, shapes_of, to_theirs
from rfdit.model import DiT, MMDiT
from rfdit.model.embeddings import PositionEmbedding
from rfdit.training.checkpoint import SavedRun
from rfdit.trusted import check_targets

SHIPPED = Path(shipped.__file__).parent
AUTOENCODERS = {
    "rfdit.autoencoder.identity.IdentityAutoencoder": None,
    "rfdit.autoencoder.kl.KLAutoencoder": "AutoencoderKL",
    "rfdit.autoencoder.tiny.TinyAutoencoder": "AutoencoderTiny",
    "rfdit.autoencoder.dc.DCAutoencoder": "AutoencoderDC",
}
BPE = "rfdit.text_encoder.bpe.BPEEncoder"
ENCODER = "conditioner.encoder."  # in front of a trained text encoder's weights


def write_diffusers_folder(out: Path, saved: SavedRun, weights: str) -> None:
    """A pipeline folder for DiffusionPipeline.from_pretrained(out, trust_remote_code=True).

    Raises ValueError for a network that diffusers has no counterpart of, one with parts of other packages
    too, and OSError where the autoencoder, which is copied into the folder, is not at hand.
    """
    check_free(out)
    state = saved.weights(weights)
    check_targets({"model": saved.config["model"]}, ["rfdit"])  # the run may be anybody's
    with torch.device("meta"):
        backbone = build(saved.config["model"])
    if not isinstance(backbone, DiT | MMDiT):
        raise ValueError(
            f"format=diffusers knows model=dit and model=mmdit, not {type(backbone).__name__}; use format=safetensors"
        )
    check_weights(saved.path, backbone, state, "backbone.")
    transformer = as_diffusers(backbone, state)
    autoencoder = _autoencoder(saved.config["autoencoder"])
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {
        "transformer": _save(transformer, out / "transformer"),
        "scheduler": _save(_scheduler(saved), out / "scheduler"),
        "vae": [None, None] if autoencoder is None else _save(autoencoder, out / "vae"),
    }
    if isinstance(backbone, MMDiT):
        index |= _write_text_encoder(out, saved, state)
    height, width = (side * backbone.patch_size for side in backbone.positions.grid)
    index |= {"latent_height": height, "latent_width": width}
    _write_index(out, "CaptionPipeline" if isinstance(backbone, MMDiT) else "LabelPipeline", index)
    argument = '"a red circle"' if isinstance(backbone, MMDiT) else "207"
    usage = (
        "from diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)\n'
        f'pipeline({argument}, num_inference_steps=25).images[0].save("picture.png")'
    )
    (out / CARD).write_text(model_card(saved, weights, library="diffusers", usage=usage))


def as_diffusers(backbone: DiT | MMDiT, state: State) -> Any:
    """diffusers' transformer that computes what the backbone does with a `Network`'s state dict.

    DiT becomes the shipped RectifiedFlowDiT. MMDiT becomes SD3Transformer2DModel itself where that can
    express the linear layer of the pooled caption, and the shipped RectifiedFlowMMDiT elsewhere.
    Raises ValueError, naming the setting, for what neither can be.
    """
    stream: Any = backbone.blocks[0].x
    if stream.mlp_in.out_features != 4 * backbone.width:
        raise ValueError(
            "format=diffusers needs model.mlp_ratio=4, which diffusers' blocks have; use safetensors"
        )
    if isinstance(backbone, MMDiT):
        transformer, theirs = _mmdit(backbone, state)
    else:
        transformer, theirs = _dit(backbone, state)
    transformer.load_state_dict(theirs, assign=True)
    return transformer.eval().requires_grad_(False)


def _dit(backbone: DiT, state: State) -> tuple[Any, State]:
    from rfdit.interchange.shipped.rectified_flow_dit import RectifiedFlowDiT

    if "conditioner.table.weight" not in state:
        raise ValueError(
            "format=diffusers knows model=dit with class labels, not with captions; use format=safetensors"
        )
    rows, columns = backbone.positions.grid
    if rows != columns:
        raise ValueError(
            f"format=diffusers: diffusers' DiT makes square pictures, not {rows}x{columns} patches; use safetensors"
        )
    depth = len(backbone.blocks)
    stream: Any = backbone.blocks[0].x
    with torch.device("meta"):
        transformer = RectifiedFlowDiT(
            num_attention_heads=stream.num_heads,
            attention_head_dim=backbone.width // stream.num_heads,
            in_channels=_channels(backbone),
            num_layers=depth,
            sample_size=rows * backbone.patch_size,
            patch_size=backbone.patch_size,
            num_embeds_ada_norm=len(state["conditioner.table.weight"]) - 1,
            qk_norm=stream.qk_norm,
            time_scale=backbone.time.scale,
        )
    stacks = [*dit_stacks(depth), positions_stack(), *(dit_norm_stacks(depth) if stream.qk_norm else [])]
    return transformer, repeat_embedding(to_theirs(stacks, state, shapes_of(transformer.state_dict())), depth)


def _mmdit(backbone: MMDiT, state: State) -> tuple[Any, State]:
    from diffusers import SD3Transformer2DModel

    from rfdit.interchange.shipped.rectified_flow_mmdit import RectifiedFlowMMDiT

    depth = len(backbone.blocks)
    stream: Any = backbone.blocks[0].x
    fits = 2 * backbone.pooled.in_features <= backbone.width
    kind: Any = SD3Transformer2DModel if fits else RectifiedFlowMMDiT
    with torch.device("meta"):
        transformer = kind(
            sample_size=max(backbone.positions.grid) * backbone.patch_size,
            patch_size=backbone.patch_size,
            in_channels=_channels(backbone),
            num_layers=depth,
            attention_head_dim=backbone.width // stream.num_heads,
            num_attention_heads=stream.num_heads,
            joint_attention_dim=backbone.captions.in_features,
            caption_projection_dim=backbone.width,
            pooled_projection_dim=backbone.pooled.in_features,
            out_channels=_channels(backbone),
            pos_embed_max_size=max(backbone.positions.grid),
            qk_norm="rms_norm" if stream.qk_norm else None,
        )
    stacks = mmdit_stacks(depth, qk_norm=stream.qk_norm) + ([] if fits else pooled_stacks())
    theirs = to_theirs(stacks, state, shapes_of(transformer.state_dict()))
    theirs["pos_embed.pos_embed"] = square_table(state["backbone.positions.table"], backbone.positions)
    if fits:
        theirs |= linear_as_mlp(state["backbone.pooled.weight"], state["backbone.pooled.bias"])
    return transformer, theirs


def linear_as_mlp(weight: Float[Tensor, "d p"], bias: Float[Tensor, "d"]) -> State:
    """SD3's MLP of the pooled caption with the weights that make it linear.

    silu(x) - silu(-x) = x (sigmoid(x) + sigmoid(-x)) = x, so 2p of its d hidden units suffice.
    """
    d, p = weight.shape
    both_signs, difference = torch.zeros(d, p), torch.zeros(d, d)
    both_signs[:p], both_signs[p : 2 * p] = torch.eye(p), -torch.eye(p)
    difference[:, :p], difference[:, p : 2 * p] = weight, -weight
    name = "time_text_embed.text_embedder.linear_"
    return {
        f"{name}1.weight": both_signs,
        f"{name}1.bias": torch.zeros(d),
        f"{name}2.weight": difference,
        f"{name}2.bias": bias.clone(),
    }


def square_table(table: Float[Tensor, "n d"], positions: PositionEmbedding) -> Float[Tensor, "1 m d"]:
    """The positions in the middle of a square, where SD3 crops them from."""
    rows, columns = positions.grid
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = torch.zeros(side, side, table.shape[1])
    square[top : top + rows, left : left + columns] = rearrange(table, "(h w) d -> h w d", h=rows)
    return rearrange(square, "h w d -> 1 (h w) d")


def _channels(backbone: DiT | MMDiT) -> int:
    return int(backbone.final.linear.out_features // backbone.patch_size**2)


def _scheduler(saved: SavedRun) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=saved.config["sampler"]["shift"])


def _autoencoder(node: dict[str, Any]) -> Any:
    """diffusers' autoencoder of a config node; None where latents are pixels."""
    import diffusers

    if node["_target_"] not in AUTOENCODERS:
        raise ValueError(f"format=diffusers: autoencoder._target_={node['_target_']} is none of diffusers'")
    name = AUTOENCODERS[node["_target_"]]
    if name is None:
        return None
    return load_pretrained(getattr(diffusers, name), node["source"], subfolder=node.get("subfolder"))


def _write_text_encoder(out: Path, saved: SavedRun, state: State) -> dict[str, Any]:
    """The entries of the index; pretrained towers, which are others' weights, stay out."""
    from rfdit.interchange.shipped.caption_embedding import CaptionEmbedding

    if saved.config["text_encoder"]["_target_"] != BPE:
        return {"text_encoder": [None, None], "tokenizer": [None, None]}
    weights = {name.removeprefix(ENCODER): x for name, x in state.items() if name.startswith(ENCODER)}
    (vocabulary, width), length = weights["token_embedding.weight"].shape, len(weights["position_embedding"])
    with torch.device("meta"):
        encoder = CaptionEmbedding(vocabulary=vocabulary, width=width, length=length)
    encoder.load_state_dict({name: x.contiguous() for name, x in weights.items()}, assign=True)
    write_clip_tokenizer(out / "tokenizer", length=length)
    return {
        "text_encoder": _save(encoder, out / "text_encoder"),
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }


def _save(part: Any, folder: Path) -> list[str]:
    """Writes a part of the pipeline, with its code if that is ours; returns its entry in the index."""
    part.save_pretrained(folder)
    module = type(part).__module__
    if not module.startswith(shipped.__name__):
        return ["diffusers", type(part).__name__]
    name = module.rpartition(".")[2]
    shutil.copyfile(SHIPPED / f"{name}.py", folder / f"{name}.py")
    return [name, type(part).__name__]


def _write_index(out: Path, pipeline: str, index: dict[str, Any]) -> None:
    import diffusers

    shutil.copyfile(SHIPPED / "pipeline.py", out / "pipeline.py")
    head = {"_class_name": ["pipeline", pipeline], "_diffusers_version": diffusers.__version__}
    (out / "model_index.json").write_text(json.dumps(head | index, indent=2) + "\n")
