"""The arguments of a published file: its source, the prediction of its network, its null class.

The scripts of DiT, SiT and REPA save their arguments beside the weights. Names of weights and of arguments,
read for facts only: facebookresearch/DiT, willisma/SiT, sihyun-yu/REPA.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

LABELS = "y_embedder.embedding_table.weight"
PROJECTORS = "projectors."
VELOCITY = {"_target_": "rfdit.model.VelocityPrediction"}
COSINE = {"_target_": "rfdit.model.CosineVelocityPrediction"}
DDPM = {"_target_": "rfdit.model.NoisePrediction", "schedule": {"_target_": "rfdit.model.VPSchedule"}}
# An argument that only one script has -> the source that this script belongs to.
MARKS = {"proj_coeff": "repa", "enc_type": "repa", "train_eps": "sit", "loss_weight": "sit"}
# Their names of the path from noise to data, in small letters.
PATHS = {"linear": VELOCITY, "gvp": COSINE, "cosine": COSINE}


def check_source(source: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> None:
    """Raises ValueError for a file that belongs to another source, where the two can be told apart."""
    found = next((MARKS[name] for name in MARKS if name in args), None)
    model = str(args.get("model", ""))
    if found is None and model.startswith("DiT-"):
        found = "dit"
    sit_like = found is None and source not in ("sit", "repa") and model.startswith("SiT-")
    if (found is not None and found != source) or sit_like:
        raise ValueError(
            f"file was written by the script of {found or 'SiT or REPA'}, by its arguments, not of {source}; use "
            f"source={found or 'sit'}"
        )
    projected = any(name.startswith(PROJECTORS) for name in state)
    if projected and source in ("sit", "dit"):
        raise ValueError(f"file has projectors, which only REPA trains, not {source}; use source=repa")
    if source == "repa" and not projected and _is_doubled(state):
        raise ValueError(
            "file has outputs for a variance too, which REPA's network never has; use source=sit or source=dit"
        )


def prediction_of(source: str, settings: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the prediction of a source's network.

    settings: those of its `DiT`. args: the arguments in the file; what they do not say is as published.
    Raises ValueError for a path or a prediction that has no counterpart here.
    """
    if source == "dit":
        return DDPM | {"learned_variance": "out_channels" in settings}
    path, predicted = str(args.get("path_type", "linear")), str(args.get("prediction", "velocity"))
    if predicted not in ("velocity", "v"):
        raise ValueError(
            f"file has a network of prediction={predicted} on the path {path}, by its arguments; rfdit converts those "
            "that predict velocity"
        )
    if path.lower() not in PATHS:
        raise ValueError(
            f"file has a network of path_type={path}, by its arguments; rfdit converts Linear, GVP and cosine"
        )
    return PATHS[path.lower()]


def has_null_class(state: Mapping[str, Tensor], args: Mapping[str, Any], given: bool | None) -> bool:
    """True if the last row of the label table is the null class; given: the user's word for it, or None.

    Warns where the model has none, so that it cannot be guided, and where that can only be guessed.
    """
    rows, classes = len(state[LABELS]) if LABELS in state else 0, args.get("num_classes")
    known = given if given is not None else (rows != classes if type(classes) is int else None)
    if known is False:
        warnings.warn(
            f"file has no null class: all {rows} rows of its label table are classes; it can only be sampled with "
            "guidance=none",
            stacklevel=2,
        )
    elif known is None and rows % 10 == 0:
        warnings.warn(
            f"the last of {rows} rows of the file's label table is taken for the null class; if it is a class, give "
            "null_class=false",
            stacklevel=2,
        )
    return known is not False


def _is_doubled(state: Mapping[str, Tensor]) -> bool:
    bias, kernel = state.get("final_layer.linear.bias"), state.get("x_embedder.proj.weight")
    if bias is None or kernel is None or kernel.ndim != 4:
        return False
    return len(bias) == 2 * kernel[0].numel()
