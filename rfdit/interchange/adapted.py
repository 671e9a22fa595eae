"""Adapters and the base that they change, as one model."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rfdit.checkpoint.registry import check_saved
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build, build_backbone
from rfdit.interchange.naming import check_weights
from rfdit.pretrained.frozen import state_digest
from rfdit.storage.untrusted import explained

PREFIX = "backbone."  # of the names of what is adapted, in a `Network`
State = dict[str, Tensor]
Open = Callable[[str], SavedRun]


def on_base(
    saved: SavedRun, opened: Open, *, base: str | None = None, packages: Collection[str] = ()
) -> SavedRun:
    """A run of adapters as a whole model: its adapters, raw and averaged, merged into their base.

    opened: opens a model. base: where the base is, if it has moved.
    packages: those of the user's own whose classes the network may have.
    Raises ValueError if it is not there, or is not the one that the adapters were trained on.
    """
    if saved.base is None:
        if base is not None:
            raise ValueError(f"base={base}: {saved.path} is a whole model, without adapters")
        return saved
    state = base_state(saved, opened, base)
    return replace(
        saved,
        config={name: node for name, node in saved.config.items() if name != "adapter"},
        network=merged_state(saved, state, saved.network, packages),
        ema={name: merged_state(saved, state, tensors, packages) for name, tensors in saved.ema.items()},
        base=None,
    )


def base_state(saved: SavedRun, opened: Open, base: str | None = None) -> State:
    """The weights that the adapters of a run change."""
    assert saved.base is not None
    where = base or saved.base.ckpt
    try:
        state = opened(where).weights(saved.base.weights)
    except (ValueError, OSError) as error:
        raise type(error)(
            f"{saved.path} holds adapters, and their base cannot be opened ({error}); give base=..., where it is now"
        ) from None
    check_digest(saved, state, f"base={where}")
    return state


def check_digest(saved: SavedRun, state: Mapping[str, Tensor], named: str) -> None:
    """Raises ValueError if weights are not those that adapters were trained on. named: them, in the message."""
    assert saved.base is not None
    if (digest := state_digest(state)) != saved.base.digest:
        raise ValueError(
            f"{saved.path} holds adapters of the weights {saved.base.digest[:12]} ({saved.base.weights} of "
            f"{saved.base.ckpt}), and {named} has the weights {digest[:12]}; give that base"
        )


def merged_state(saved: SavedRun, base: State, tensors: State, packages: Collection[str] = ()) -> State:
    """The state dict of the whole network with adapters merged into it."""
    from rfdit.model.adapters import merged

    if not tensors:
        return {}
    check_saved(saved, ("model", "prediction", "adapter"), packages)
    with explained(f"{saved.path} cannot be built"):
        backbone = build_backbone(saved.config)
        check_weights(saved.path, backbone, base, PREFIX)  # type: ignore[arg-type]
        backbone.load_state_dict(  # type: ignore[attr-defined]
            {name.removeprefix(PREFIX): x for name, x in base.items() if name.startswith(PREFIX)}
        )
        try:
            whole = merged(
                backbone,  # type: ignore[arg-type]
                build(saved.config["adapter"]),
                {name.removeprefix(PREFIX): x for name, x in tensors.items()},
            )
        except ValueError as error:
            raise ValueError(f"{saved.path} is damaged: {error}") from None
    return base | {PREFIX + name: tensor for name, tensor in whole.items()}


def with_adapters(
    saved: SavedRun,
    weights: str,
    adapters: Sequence[str],
    opened: Open,
    *,
    packages: Collection[str] = (),
) -> SavedRun:
    """A model with several runs' adapters added to its weights, each with its own factor.

    adapters: `PATH` or `PATH:FACTOR`. weights: the model's weights that they change.
    Its configuration then has `adapters`, for the protocols of what is measured of it.
    Raises ValueError for runs that are not of adapters of these weights.
    """
    state: Any = saved.weights(weights)
    total, names = dict(state), []
    for given in adapters:
        path, factor = _factor(given)
        adapter = opened(path)
        if adapter.base is None:
            raise ValueError(f"adapters={given}: {adapter.path} is a whole model, without adapters")
        check_digest(adapter, state, f"ckpt={saved.path} (weights={weights})")
        own = adapter.weights("ema" if adapter.ema else "raw")
        names.append(f"{factor:g} of {state_digest(own)[:12]}")
        changed = merged_state(adapter, state, own, packages)
        for name, tensor in changed.items():
            if tensor.is_floating_point():
                total[name] = total[name] + factor * (tensor - state[name])
    raw = weights == "raw"
    config = saved.config | {"adapters": names}
    return replace(saved, config=config, network=total if raw else {}, ema={} if raw else {weights: total})


def _factor(given: str) -> tuple[str, float]:
    """The path and the factor of `PATH:0.8`; the factor is 1 if there is none.

    Raises ValueError for a factor that is not finite.
    """
    path, colon, end = given.rpartition(":")
    try:
        factor = float(end)
    except ValueError:
        return given, 1.0
    if not colon or Path(given).exists():
        return given, 1.0
    if not math.isfinite(factor):
        raise ValueError(f"adapters={given}: the factor after the colon must be finite")
    return path, factor
