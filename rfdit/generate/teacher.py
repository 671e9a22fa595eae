"""The network of a saved model, from which another one learns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from rfdit.autoencoder.contract import LatentContract
from rfdit.batch import Batch, Condition, Latent, Time
from rfdit.checkpoint.registry import check_saved
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.generate.load import load_network
from rfdit.interchange.source import open_named
from rfdit.limits import Index
from rfdit.network import Network
from rfdit.protocols import takes_guidance
from rfdit.storage.untrusted import explained


@runtime_checkable
class CheckpointTeacher(Protocol):
    """A `Teacher` whose network is loaded from a checkpoint, before training."""

    def load(
        self, contract: LatentContract, num_classes: int | None, class_names: Sequence[str] | None
    ) -> None:
        """Loads the network for a run in this latent space, with so many classes; None for captions.

        class_names: theirs, by number, if they are known.
        """
        ...


NETWORK = ("model", "prediction", "conditioner")  # groups of a checkpoint's configuration


class FrozenTeacher:
    """`teacher=weights`: a `Teacher` with the network, and the conditioner, of a checkpoint.

    It has no place among the modules of the run, so that nothing trains, averages or saves it. Every device has a whole
    copy.

    ckpt, weights, step, base, packages: as of `init=weights`.
    """

    def __init__(
        self,
        *,
        ckpt: str,
        weights: str = "ema",
        step: Index | None = None,
        base: str | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        self.ckpt, self.weights, self.step, self.base, self.packages = ckpt, weights, step, base, packages
        self._network: Network | None = None
        self._conditions: tuple[Condition, Condition] | None = None

    def load(
        self, contract: LatentContract, num_classes: int | None, class_names: Sequence[str] | None
    ) -> None:
        """As of `CheckpointTeacher`.

        Raises ValueError or OSError, naming the setting, for a checkpoint that is not there or does not fit.
        """
        saved = open_named("teacher", self.ckpt, step=self.step, base=self.base, packages=self.packages)
        self._check(saved, contract, num_classes, class_names)
        check_saved(saved, NETWORK, self.packages)
        with explained(f"{saved.path} cannot be built"):
            try:
                self._network = load_network(saved, self.weights)
            except ValueError as error:
                raise ValueError(f"teacher.{error}" if str(error).startswith("weights=") else error) from None
        if takes_guidance(self._network.backbone):
            raise ValueError(
                f"teacher.ckpt={self.ckpt} takes the scale of guidance as an input, and would be guided twice; give a "
                "model without model.guidance"
            )

    def read(self, batch: Batch, *, device: torch.device) -> None:
        """As of `Teacher`."""
        network = self._loaded
        if next(network.parameters()).device != device:
            network.to(device)
        conditioner = network.conditioner
        if batch.captions is not None:  # features that were cached are those of the run's own encoder
            batch = replace(batch, condition=None)
        with torch.no_grad():
            cond = conditioner(conditioner.inputs(batch), device=device)
            self._conditions = cond, conditioner.null(device=device).expand(len(cond))

    @torch.no_grad()
    def __call__(self, z_t: Latent, t: Time) -> tuple[Latent, Latent]:
        """As of `Teacher`, float32; both in one pass of twice the batch."""
        assert self._conditions is not None
        both = Condition.join(self._conditions)
        c, u = self._loaded.backbone(z_t.repeat(2, 1, 1, 1), t.repeat(2), both).float().chunk(2)
        return c, u

    @property
    def _loaded(self) -> Network:
        assert self._network is not None
        return self._network

    def _check(
        self,
        saved: SavedRun,
        contract: LatentContract,
        num_classes: int | None,
        class_names: Sequence[str] | None,
    ) -> None:
        """Raises ValueError for a model of other latents, or of other inputs, than the run."""
        latents = contract.differences(LatentContract.from_dict(saved.latents))
        found = [f"latents.{name}={there} (here {here})" for name, (here, there) in latents.items()]
        if saved.num_classes != num_classes:
            found.append(f"it knows {_inputs(saved.num_classes)} (here {_inputs(num_classes)})")
        elif saved.class_names is not None and class_names is not None:
            pairs = enumerate(zip(saved.class_names, class_names, strict=True))
            if other := next((pair for pair in pairs if pair[1][0] != pair[1][1]), None):
                number, (there, here) = other
                found.append(f"its class {number} is {there} (here {here})")
        if found:
            raise ValueError(
                f"teacher.ckpt={self.ckpt} does not fit this run: {', '.join(found)}; give a model of the same task"
            )


def _inputs(num_classes: int | None) -> str:
    return "captions" if num_classes is None else f"{num_classes} classes"
