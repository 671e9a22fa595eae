"""Parameters and multiply-adds of a run's network, from its configuration."""

import json
from functools import lru_cache
from typing import Any

from rfdit.checkpoint.registry import check_parts
from rfdit.config.build import latent_shape
from rfdit.cost.count import count_macs, count_parameters
from rfdit.cost.plan import blank_condition, bounded, build_on_meta


def read_cost(config: dict[str, Any]) -> tuple[int, float] | tuple[None, None]:
    """Parameters of backbone and conditioner, and 10^9 multiply-adds of a forward pass on one image.

    None for a network with classes from outside rfdit or settings that they do not take, since a run may
    come from anyone.
    """
    network = {name: config.get(name) for name in ("model", "prediction", "conditioner")}
    try:
        check_parts(network)
        return _count(json.dumps(network, sort_keys=True), latent_shape(config))
    except ValueError:
        return None, None


@lru_cache  # runs of a sweep may differ in other settings
def _count(description: str, shape: tuple[int, int, int]) -> tuple[int, float]:
    with bounded():
        network = build_on_meta(json.loads(description))
    macs = count_macs(network.backbone, shape, blank_condition(network.conditioner))
    return count_parameters(network), macs / 1e9
