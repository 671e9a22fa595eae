"""Averaged copies of a network, whole or sharded like it."""

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
    """Frozen float32 copies of a network, one per profile: average += rate (weights - average).

    networks: the copies, by profile. Their parameters may be made DTensors later, if those of the
        network are in the same way; then every rank updates its own shards without communication.
    updates: steps that each average includes. waiting: steps since then.
    trained_only: for adapters: share what is frozen with the network, and save what is trained alone.
    trained: names of the parameters that change; all others are copied once, in `start`.
    """

    def __init__(
        self, *, network: Network, profiles: Mapping[str, Profile], trained_only: bool = False
    ) -> None:
        self.profiles, self.trained_only = profiles, trained_only
        frozen = {id(p): p for p in network.parameters() if trained_only and not p.requires_grad}
        self.networks: dict[str, Network] = {
            name: copy.deepcopy(network, dict(frozen)).float().requires_grad_(False).eval()
            for name in profiles
        }
        self.updates, self.waiting = dict.fromkeys(profiles, 0), dict.fromkeys(profiles, 0)
        self.trained = [name for name, p in network.named_parameters() if p.requires_grad]
        self._weights: list[Tensor] = []
        self._means: dict[str, list[Tensor]] = {}

    def to(self, device: torch.device) -> None:
        """Moves the copies that are not sharded; the others are on their device already."""
        for network in self.networks.values():
            if not any(isinstance(p, DTensor) for p in network.parameters()):
                network.to(device)

    @torch.no_grad()
    def start(self, network: Network, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Averages `network` from now on, starting from a `state_dict` or, for profiles not in it, from the weights."""
        trained = [p.requires_grad for p in network.parameters()]
        self._weights = [p for p, follow in zip(network.parameters(), trained) if follow]
        for name, average in self.networks.items():
            known = saved.get(name)
            self.updates[name] = known["updates"] if known else 0
            self.waiting[name] = known["waiting"] if known else 0
            target = average.state_dict()
            if self.trained_only:  # the rest is the same
                target = {key: target[key] for key in self.trained}
            source = known["network"] if known else network.state_dict()
            _copy(source if known else {key: source[key] for key in target}, target)
            self._means[name] = [p for p, follow in zip(average.parameters(), trained) if follow]

    @torch.no_grad()
    def update(self, *, due: bool = True) -> None:
        """Counts a step of training and, where `due`, updates every average by one foreach call.

        The weights of this step then stand for all steps since the last update, with their
        combined rate. Rarer updates cost less, since the cost is reading and writing the averages.
        """
        for name in self.profiles:
            self.waiting[name] += 1
        if not due:
            return
        weights = [local(weight).float() for weight in self._weights]
        for name in self.profiles:
            means = [local(mean) for mean in self._means[name]]
            torch._foreach_lerp_(means, weights, self._rate_of_waiting(name))

    def _rate_of_waiting(self, name: str) -> float:
        """The rate of weights that stand for all waiting steps, 1 - prod(1 - rate); resets their number."""
        first = self.updates[name] + 1
        self.updates[name], self.waiting[name] = self.updates[name] + self.waiting[name], 0
        rate = self.profiles[name].rate
        if first == self.updates[name]:
            return rate(first)
        return 1 - math.prod(1 - rate(step) for step in range(first, self.updates[name] + 1))

    def trained_part(self, name: str) -> dict[str, Tensor]:
        """The trained parameters of an average, by name."""
        return dict(zip(self.trained, self._means[name]))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """For each profile, `updates`, `waiting`, and `network`, a state dict."""
        return {
            name: {
                "updates": self.updates[name],
                "waiting": self.waiting[name],
                "network": {
                    key: tensor
                    for key, tensor in network.state_dict().items()
                    if not self.trained_only or key in self.trained
                },
            }
            for name, network in self.networks.items()
        }


def local(tensor: Tensor) -> Tensor:
    """The shard of a tensor on this rank, without a copy, so that it can be written to; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies values into the tensors of a state dict; from whole values each rank copies its shard."""
    assert source.keys() == target.keys(), source.keys() ^ target.keys()
    for name, tensor in target.items():
        value = source[name]
        if isinstance(tensor, DTensor) and not isinstance(value, DTensor):
            value = value.to(local(tensor).device)
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        local(tensor).copy_(local(value))
