"""A network whose adapters are trained, on weights that are named and not saved again."""

from pathlib import Path
from typing import Any

from rfdit.checkpoint.base import Base
from rfdit.finetune.freeze import freeze
from rfdit.finetune.start import Started
from rfdit.model.adapters import Adapter, inject
from rfdit.network import Network
from rfdit.pretrained.frozen import state_digest


def choose_trained(network: Network, adapter: Adapter | None, config: dict[str, Any]) -> None:
    """Leaves trainable what a run trains: the adapters, which are put into the network, or what `freeze` leaves.

    Raises ValueError, naming the setting, for what adapters are not trained with, and as `freeze` does.
    """
    if adapter is not None:
        _check(config)
        if network.objective is not None:
            raise ValueError(
                "weighting has layers that are not trained beside adapters; use weighting=uniform"
            )
        network.requires_grad_(False)
        inject(network.get_submodule("backbone"), adapter)
    freeze(network, config["freeze"])


def find_base(started: Started | None, *, resumed: Base | None = None) -> Base:
    """The base of a run's adapters: the weights that the network has been given, and must have been given whole.

    resumed: the base of the checkpoint from which the run goes on.
    Raises ValueError, naming the setting, for weights that are not a base, or not that of the checkpoint.
    """
    if started is None and resumed is not None:
        raise ValueError(
            f"ckpt holds adapters of the {resumed.weights} weights of {resumed.ckpt}, and init=none has no weights to "
            "put them beside; give init=weights init.ckpt=..., where those are"
        )
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
    return base


def check_resumes(resume: Path, resumed: Base | None, adapter: Adapter | None) -> None:
    """Raises ValueError for a checkpoint of adapters in a run that trains none, and the other way round.

    resumed: the base of the checkpoint, None for one of a whole network.
    """
    if resumed is not None and adapter is None:
        raise ValueError(
            f"ckpt={resume} holds adapters of the {resumed.weights} weights of {resumed.ckpt}, and adapter=none trains "
            "the network itself; give the adapter and init that the run was started with"
        )
    if resumed is None and adapter is not None:
        raise ValueError(
            f"ckpt={resume} holds a whole network, and adapter trains beside one; give adapter=none to resume it, or "
            "adapt it in a run of its own by init=weights init.ckpt=... and another run_dir"
        )


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
