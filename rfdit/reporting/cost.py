"""Parameters and multiply-adds of a run's network, from its configuration."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rfdit.model.cost import count_macs, count_parameters
from rfdit.plan import blank_condition, build_on_meta
from rfdit.trusted import check_targets


@dataclass(frozen=True)
class Cost:
    """parameters: of backbone and conditioner. gmacs: 10^9 multiply-adds of a forward pass on an image."""

    parameters: int
    gmacs: float


def cost_of(config: dict[str, Any]) -> Cost | None:
    """None for a network that is not of rfdit's own classes: a run folder may come from anybody."""
    try:
        network = {name: config[name] for name in ("model", "conditioner")}
        check_targets(network, ["rfdit"])
    except (KeyError, ValueError):
        return None
    return _cost(json.dumps(network, sort_keys=True))


@lru_cache  # runs of a sweep may differ in other things
def _cost(description: str) -> Cost | None:
    try:
        config = json.loads(description)
        network, model = build_on_meta(config), config["model"]
        size = model["input_size"]
        latent = (model["in_channels"], *((size, size) if isinstance(size, int) else tuple(size)))
        macs = count_macs(network.backbone, latent, blank_condition(network.conditioner))
    except (KeyError, TypeError, ValueError):  # settings of another version of rfdit
        return None
    return Cost(count_parameters(network), macs / 1e9)
