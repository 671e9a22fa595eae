"""The averaged copies of a network, sharded as it is or whole."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rfdit.ema.profiles import Profile
from rfdit.network import Network


class Averages:
    """Frozen float32 copies of a network, one per profile, moved towards it as it is trained.

    networks: by the profiles' names. Their parameters may be made DTensors after this, if the
        network's are in the same way; then every rank updates its own shards and none communicates.
    updates: how many steps each has in it. waiting: how many have been taken since.
    trained: names of the parameters that change; the rest is copied once, in `start`.
    """

    def __init__(self, *, network: Network, profiles: Mapping[str, Profile]) -> None:
        self.profiles = profiles
        self.networks: dict[str, Network] = {
            name: copy.deepcopy(network).float().requires_grad_(False).eval() for name in profiles
        }
        self.updates, self.waiting = dict.fromkeys(profiles, 0), dict.fromkeys(profiles, 0)
        self.trained = [name for name, p in network.named_parameters() if p.requires_grad]
        self._weights: list[Tensor] = []
        self._means: dict[str, list[Tensor]] = {}

    def to(self, device: torch.device) -> None:
        """Moves what is not sharded; what is lies on its device already."""
        for network in self.networks.values():
            if not any(isinstance(p, DTensor) for p in network.parameters()):
                network.to(device)

    @torch.no_grad()
    def start(self, network: Network, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Follows `network` from here: on from a `state_dict`, or, where it lacks a profile, from the weights."""
        trained = [p.requires_grad for p in network.parameters()]
        self._weights = [p for p, follow in zip(network.parameters(), trained) if follow]
        for name, average in self.networks.items():
            known = saved.get(name)
            self.updates[name] = known["updates"] if known else 0
            self.waiting[name] = known.get("waiting", 0) if known else 0
            _copy(known["network"] if known else network.state_dict(), average.state_dict())
            self._means[name] = [p for p, follow in zip(average.parameters(), trained) if follow]

    @torch.no_grad()
    def update(self, *, due: bool = True) -> None:
        """One step has been taken; where it is due, every average is moved, by one foreach call each.

        It then takes the weights of this step in for all that have been taken since the last time, with
        the share that those have in the profile: seldom updates cost less, since reading and writing the
        averages is what they cost.
        """
        for name in self.profiles:
            self.waiting[name] += 1
        if not due:
            return
        weights = [local(weight).float() for weight in self._weights]
        for name in self.profiles:
            means = [local(mean) for mean in self._means[name]]
            torch._foreach_lerp_(means, weights, self._share_of_waiting(name))

    def _share_of_waiting(self, name: str) -> float:
        """The share that new weights have which stand for all waiting steps; none waits after this."""
        first = self.updates[name] + 1
        self.updates[name], self.waiting[name] = self.updates[name] + self.waiting[name], 0
        rate = self.profiles[name].rate
        if first == self.updates[name]:
            return rate(first)
        return 1 - math.prod(1 - rate(step) for step in range(first, self.updates[name] + 1))

    def trained_part(self, name: str) -> dict[str, Tensor]:
        """The parameters of an average that change, by their names in the network."""
        return dict(zip(self.trained, self._means[name]))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By profile, `updates`, `waiting` and `network`, a state dict."""
        return {
            name: {
                "updates": self.updates[name],
                "waiting": self.waiting[name],
                "network": network.state_dict(),
            }
            for name, network in self.networks.items()
        }


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; without a copy, so that it can be written to."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies values into a state dict's tensors; whole ones into shards too, each rank taking its part."""
    assert source.keys() == target.keys(), source.keys() ^ target.keys()
    for name, tensor in target.items():
        value = source[name]
        if isinstance(tensor, DTensor) and not isinstance(value, DTensor):
            value = value.to(local(tensor).device)
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        local(tensor).copy_(local(value))
