"""A network whose adapters are trained, on weights that are named and not saved again."""

from pathlib import Path
from typing import Any

from rfdit.checkpoint.base import Base
from rfdit.finetune.start import Started
from rfdit.model.adapters import Adapter, inject
from rfdit.network import Network
from rfdit.pretrained.frozen import state_digest


def adapt(
    network: Network,
    adapter: Adapter,
    started: Started | None,
    *,
    config: dict[str, Any],
    empty: bool,
    resumed: Base | None = None,
) -> Base | None:
    """Puts adapters into a network and freezes the rest; returns their base, None on an `empty` rank.

    started: the weights that the network has been given, and must have been given whole.
    resumed: the base of the checkpoint from which the run goes on.
    Raises ValueError, naming the setting, for weights that are not a base, and for what adapters are not trained with.
    """
    _check(config)
    if network.objective is not None:
        raise ValueError("weighting has layers that are not trained beside adapters; use weighting=uniform")
    base = None
    if not empty:
        if started is None:
            raise ValueError(
                "adapter trains beside weights that there are; give init=weights init.ckpt=..., or adapter=none"
            )
        base = _base(started)
        if resumed is not None and resumed.digest != base.digest:
            raise ValueError(
                f"ckpt holds adapters of the weights {resumed.digest[:12]} ({resumed.weights} of {resumed.ckpt}), and "
                f"init.ckpt={started.saved.path} has the weights {base.digest[:12]}; give init.ckpt of that base"
            )
    network.requires_grad_(False)
    inject(network.get_submodule("backbone"), adapter)
    return base


def _base(started: Started) -> Base:
    fit, path = started.fit, started.saved.path
    if other := [*fit.initial, *fit.changed, *fit.unused]:
        raise ValueError(
            f"adapter needs the whole network from init.ckpt={path}, whose {other[0]} does not fit; give the settings "
            "that it was trained with, or train the network itself first"
        )
    digest = state_digest(started.saved.weights(started.weights))
    return Base(
        ckpt=str(path.absolute() if Path(path).exists() else path), weights=started.weights, digest=digest
    )


def _check(config: dict[str, Any]) -> None:
    if config["fp8"]:
        raise ValueError("adapter is not trained in FP8; use fp8=false")
    if config["auxiliary"]:
        raise ValueError("auxiliary has layers that are not trained beside adapters; use auxiliary=null")
    if config["model"].get("base_width") is not None:
        raise ValueError(
            "optimizer=adamw_mup has no learning rates for adapters; use optimizer=adamw with adapter"
        )
    if config["freeze"]:
        raise ValueError(
            f"freeze={config['freeze']} has no effect with an adapter, beside which everything is frozen"
        )
