"""Exponential moving averages of the trained weights: what is validated, sampled and shipped."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from rfdit.callbacks.steps import OptimizerSteps
from rfdit.ema import Averages, PowerFunction, Profile, Snapshots
from rfdit.ema.snapshots import Snapshot
from rfdit.limits import Count
from rfdit.network import Network
from rfdit.training.module import FlowModule


class EMA(L.Callback):
    """Owns a frozen float32 copy of the network per profile, moved towards it as it is trained.

    profiles: by name; None leaves one out. The first is evaluated in the weights' place, and nothing
        is ever swapped.
    every_n_steps: updates are at multiples of it, each for all steps since the last (`Averages`); also at
        the steps of snapshots and at the last of `trainer.max_steps`.
    snapshots: stores the power function profiles now and then, for `python -m rfdit.posthoc`.

    The copies are made before a strategy shards the network, and are the strategy's to shard in the
    same way (`FlowModule.averages`). They start as the initial weights or a checkpoint's, and are
    updated in a callback's hook, which runs before checkpoints are written.
    """

    def __init__(
        self,
        *,
        profiles: dict[str, Profile | None],
        every_n_steps: Count = 1,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.profiles = {name: profile for name, profile in profiles.items() if profile is not None}
        _check_names(list(self.profiles))
        self.every_n_steps = every_n_steps
        self.powers = {n: p.std for n, p in self.profiles.items() if isinstance(p, PowerFunction)}
        if snapshots is not None and not self.powers:
            raise ValueError(
                "callbacks.ema.snapshots stores power function profiles and callbacks.ema.profiles has none; "
                "use ema=power, or callbacks.ema.snapshots=null"
            )
        self.snapshots = snapshots
        self.networks: dict[str, Network] = {}
        self._averages: Averages | None = None
        self._saved: dict[str, Any] = {}
        self._steps = OptimizerSteps()

    @property
    def updates(self) -> dict[str, int]:
        """How many steps each profile has averaged."""
        return dict(self._averages.updates) if self._averages else {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, FlowModule)
        self._averages = Averages(network=pl_module.network, profiles=self.profiles)
        self.networks = pl_module.averages = self._averages.networks

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, FlowModule)
        assert self._averages is not None
        self._averages.to(pl_module.device)
        pl_module.evaluate_with(next(iter(self.networks.values())))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, FlowModule)
        assert self._averages is not None
        # Not before: some strategies restore a checkpoint after on_fit_start.
        self._averages.start(pl_module.network, self._saved)
        self._saved = {}
        self._steps.start(trainer)
        if self.snapshots is not None and trainer.is_global_zero:
            self.snapshots.discard_after(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self._steps(trainer):
            return
        assert self._averages is not None
        step = trainer.global_step
        stored = self.snapshots is not None and step % self.snapshots.every_n_steps == 0
        # What is stored, and what a run ends with, has all steps in it.
        self._averages.update(due=step % self.every_n_steps == 0 or stored or step == trainer.max_steps)
        if self.snapshots is not None and stored:
            self._store(self.snapshots, self._averages, trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._averages is not None
        if self.snapshots is not None:
            self._store(self.snapshots, self._averages, trainer)
        if not any(self.updates.values()) and any(self._averages.waiting.values()):
            rank_zero_warn(
                f"callbacks.ema.every_n_steps={self.every_n_steps} was not reached: the averages are the weights that "
                "training started from"
            )

    def _store(self, snapshots: Snapshots, averages: Averages, trainer: L.Trainer) -> None:
        """A snapshot of each power function profile that has seen a step."""
        for name, std in self.powers.items():
            if updates := averages.updates[name]:
                snapshot = Snapshot(name, std, updates, trainer.global_step - averages.waiting[name])
                snapshots.write(snapshot, averages.trained_part(name), writes=trainer.is_global_zero)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._averages is not None:
            checkpoint["ema"] = self._averages.state_dict()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A profile without an average in it starts one from the checkpoint's weights.
        self._saved = checkpoint.get("ema", {})

    def state_dict(self) -> dict[str, Any]:
        return {"std": {name: self.powers.get(name) for name in self.profiles}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, std in state_dict["std"].items():
            if name in self.profiles and self.powers.get(name) != std:
                raise ValueError(
                    f"callbacks.ema.profiles.{name}.std={self.powers.get(name)} goes on with an average of std={std}; "
                    "give a profile of another kind or length another name"
                )


def _check_names(names: list[str]) -> None:
    """Raises ValueError for names that `weights=NAME` of sample.py could not tell apart."""
    if not names:
        raise ValueError("callbacks.ema.profiles is empty; give one, or callbacks.ema=null")
    for name in names:
        if not name.isidentifier() or name == "raw" or (name == "ema" and names[0] != "ema"):
            raise ValueError(
                f"callbacks.ema.profiles.{name} cannot be called so; use letters, digits and _, ema only for the "
                "first profile, and not raw, which are the weights being trained"
            )
