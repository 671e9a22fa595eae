"""Keeps averages of the trained weights, which are validated, sampled and exported."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from rfdit.callbacks.capabilities import at_last_step, flow_module
from rfdit.ema import Averages, PowerLength, Profile, Snapshots
from rfdit.ema.snapshots import Snapshot
from rfdit.limits import Count
from rfdit.network import Network
from rfdit.storage.untrusted import explained


class EMA(L.Callback):
    """Keeps a frozen float32 copy of the network for each profile, which follows the trained weights.

    profiles: the profiles by name; None leaves one out. The first is evaluated in place of the weights;
        nothing is ever swapped.
    every_n_steps: interval of updates, each of which covers all steps since the last (`Averages`). Steps
        with a snapshot and the last step update as well.
    snapshots: stores the power function profiles from time to time, for `rfdit posthoc`.

    The copies are made before a strategy shards the network, and the strategy shards them in the
    same way (`FlowModule.averages`). They start as the initial weights or a checkpoint's, and are
    updated in a callback's hook, which runs before checkpoints are written.
    """

    _averages: Averages  # from `setup` on

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
        self.powers = {n: p.std for n, p in self.profiles.items() if isinstance(p, PowerLength)}
        if snapshots is not None and not self.powers:
            raise ValueError(
                "callbacks.ema.snapshots stores power function profiles and callbacks.ema.profiles has none; "
                "use ema=power, or callbacks.ema.snapshots=null"
            )
        self.snapshots = snapshots
        self.networks: dict[str, Network] = {}
        self._saved: dict[str, Any] = {}

    @property
    def updates(self) -> dict[str, int]:
        """The number of steps that each profile has averaged."""
        return dict(self._averages.updates)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        module = flow_module(pl_module)
        self._averages = Averages(
            network=module.network, profiles=self.profiles, trained_only=module.trained_only
        )
        self.networks = module.averages = self._averages.networks

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = flow_module(pl_module)
        self._averages.to(module.device)
        module.evaluate_with(next(iter(self.networks.values())))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = flow_module(pl_module)
        # Not before: some strategies restore a checkpoint after on_fit_start.
        with explained(f"ckpt={trainer.ckpt_path} has other averages than those of this run"):
            self._averages.start(module.network, self._saved)
        self._saved = {}
        if self.snapshots is not None and trainer.is_global_zero:
            self.snapshots.discard_after(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not pl_module.stepped:
            return
        step = trainer.global_step
        stored = self.snapshots is not None and step % self.snapshots.every_n_steps == 0
        # Snapshots, and the averages at the end of a run, include all steps.
        self._averages.update(due=step % self.every_n_steps == 0 or stored or at_last_step(trainer))
        if self.snapshots is not None and stored:
            self._store(self.snapshots, trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.snapshots is not None:
            self._store(self.snapshots, trainer)
        if not any(self.updates.values()) and any(self._averages.waiting.values()):
            rank_zero_warn(
                f"callbacks.ema.every_n_steps={self.every_n_steps} was not reached: the averages are the weights that "
                "training started from"
            )

    def _store(self, snapshots: Snapshots, trainer: L.Trainer) -> None:
        """Store a snapshot of each power function profile that has averaged a step."""
        for name, std in self.powers.items():
            if updates := self._averages.updates[name]:
                snapshot = Snapshot(name, std, updates, trainer.global_step - self._averages.waiting[name])
                snapshots.write(snapshot, self._averages.trained_part(name), writes=trainer.is_global_zero)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ema"] = self._averages.state_dict()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A profile that the checkpoint lacks starts from the checkpoint's weights.
        self._saved = checkpoint.get("ema", {})

    def state_dict(self) -> dict[str, Any]:
        return {"std": {name: self.powers.get(name) for name in self.profiles}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, std in state_dict["std"].items():
            if name in self.profiles and self.powers.get(name) != std:
                raise ValueError(
                    f"callbacks.ema.profiles.{name}.std={self.powers.get(name)} continues an average of std={std}; "
                    "give a profile of another kind or length another name"
                )


def _check_names(names: list[str]) -> None:
    """Raises ValueError for names that `weights=NAME` of sample.py could not tell apart."""
    if not names:
        raise ValueError("callbacks.ema.profiles is empty; give one, or callbacks.ema=null")
    for name in names:
        if not name.isidentifier() or name == "raw" or (name == "ema" and names[0] != "ema"):
            raise ValueError(
                f"callbacks.ema.profiles.{name} is not a name for a profile; use letters, digits and _, ema "
                "only for the first profile, and not raw, which names the weights being trained"
            )
