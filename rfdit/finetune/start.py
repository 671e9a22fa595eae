"""The weights from which a new run starts: those that the network draws, or those of a saved model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rfdit.autoencoder.contract import LatentContract
from rfdit.checkpoint.resume import is_other
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.differences import differences
from rfdit.finetune.matching import Fit, Given, fit
from rfdit.finetune.table import table
from rfdit.interchange.source import open_named
from rfdit.limits import Fraction, Index
from rfdit.network import Network

# Settings of a model with which tensors of the same shapes compute another function, with the values of models that
# do not state them.
SAME = {
    "num_heads": None,
    "time_scale": 1000.0,
    "norm": "layer",
    "rope_order": "interleaved",
    "rope_theta": 10000.0,
    "axes": None,
}
ROTARY = "rope"  # in the names of positions that have no tensors


@dataclass(frozen=True)
class NewRun:
    """A run that starts: its configuration, the contract of its latents, and the names of its classes by number."""

    config: dict[str, Any]
    contract: LatentContract
    class_names: Sequence[str] | None


@dataclass(frozen=True)
class Started:
    """The weights that a network has been given. text: what is to be printed about them."""

    text: str
    fit: Fit
    saved: SavedRun
    weights: str


@runtime_checkable
class Start(Protocol):
    """The initial weights of a run."""

    def __call__(self, network: Network, run: NewRun) -> "Started | None":
        """Fills a new network; None if it stays as it was drawn."""
        ...


class FromScratch:
    """The weights that the network has drawn."""

    def __call__(self, network: Network, run: NewRun) -> "Started | None":
        return None


class FromWeights:
    """The weights of a saved model, as far as they fit, in backbone and conditioner.

    ckpt: run folder, .ckpt file (sharded or not), exported or converted folder, or hub name.
    weights: ema, the name of another average, or raw. step: of a checkpoint that a run folder has kept.
    base: where the base of a run of adapters is, if it has moved. packages: those of the user's own whose classes
        its network may have.
    min_share: the least share of the network's parameters that has to be found there.
    resize_patches: also take the layers that read and write patches of another size or number of channels.

    Only the weights are taken: the run begins at step 0 with a new optimiser.
    """

    def __init__(
        self,
        *,
        ckpt: str,
        weights: str = "ema",
        step: Index | None = None,
        base: str | None = None,
        packages: Sequence[str] = (),
        min_share: Fraction = 0.5,
        resize_patches: bool = False,
    ) -> None:
        self.ckpt, self.weights, self.step = ckpt, weights, step
        self.base, self.packages = base, packages
        self.min_share, self.resize_patches = min_share, resize_patches

    def __call__(self, network: Network, run: NewRun) -> "Started | None":
        """Raises ValueError, naming the setting, for weights that do not exist or are of another network."""
        saved = open_named("init", self.ckpt, step=self.step, base=self.base, packages=self.packages)
        self._check_function(saved, run.config)
        try:
            given = Given.of(saved, self.weights)
        except ValueError as error:
            raise ValueError(f"init.{error}") from None
        found = fit(network, given, resize_patches=self.resize_patches, class_names=run.class_names)
        self._check_share(found, saved, run.config)
        head = f"init: {self.weights} weights of {saved.path} at step {saved.step:,}"
        lines = [f"{head}, {found.share:.1%} of the {found.total:,} parameters", table(found)]
        if other := [d.text() for d in differences(run.contract.as_dict(), saved.latents)]:
            lines.append(f"  latents  differ from those that it was trained on: {'; '.join(other)}")
        here, there = (config.get("text_encoder") for config in (run.config, saved.config))
        other = [d.text() for d in differences(here, there, "text_encoder") if is_other(d.path)]
        if other and there is not None and run.config["conditioner"].get("encoder") is not None:
            lines.append(
                f"  captions are encoded otherwise than those that it was trained on: {'; '.join(other)}"
            )
        return Started(text="\n".join(lines), fit=found, saved=saved, weights=self.weights)

    def _check_function(self, saved: SavedRun, config: dict[str, Any]) -> None:
        here, there = config["model"], saved.config["model"]
        values = {name: (here.get(name, other), there.get(name, other)) for name, other in SAME.items()}
        mine, theirs = (str(model.get("positions")) for model in (here, there))
        if (ROTARY in mine) != (ROTARY in theirs):
            values["positions"] = mine, theirs
        for name, (mine, theirs) in values.items():
            if mine != theirs and None not in (mine, theirs):
                add = "" if name in here else "+"
                raise ValueError(
                    f"init.ckpt={self.ckpt} was trained with model.{name}={theirs}, and with model.{name}={mine} its "
                    f"weights compute something else; give {add}model.{name}={theirs}"
                )
        if other := [d.text() for d in differences(config["prediction"], saved.config["prediction"])]:
            raise ValueError(
                f"init.ckpt={self.ckpt} was trained with another prediction, under which its weights mean something "
                f"else (here prediction.{'; prediction.'.join(other)}); give the one that it was trained with"
            )

    def _check_share(self, found: Fit, saved: SavedRun, config: dict[str, Any]) -> None:
        if found.share >= self.min_share:
            return
        settings = ("_target_", "width", "depth", "patch_size", "qk_norm", "positions", "mlp_ratio")
        other = [
            d.text()
            for d in differences(config["model"], saved.config["model"])
            if d.path in settings or d.path.endswith("_width")
        ]
        listed = f" (here model.{'; model.'.join(other)})" if other else ""
        raise ValueError(
            f"init.ckpt={self.ckpt} has {found.share:.1%} of this network's parameters, fewer than "
            f"init.min_share={self.min_share}; give the settings that it was trained with"
            f"{listed}, or a lower init.min_share"
        )
