"""The latent space that an autoencoder's settings declare, and its comparison with that of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from rfdit.autoencoder.contract import LatentContract
from rfdit.autoencoder.kinds import About
from rfdit.autoencoder.statistics import Statistic, from_mean_and_std, statistic
from rfdit.limits import Count, Finite, Positive

STATISTICS = ("settings", "weights")


@dataclass(frozen=True, kw_only=True)
class DeclaredLatents:
    """The latent space of an autoencoder's settings.

    The fields are those of `DiffusersAutoencoder`. Latents are normalised in one of three ways: by scale and shift, by
    mean and std, or by the statistics that come with the weights.

    Raises ValueError for statistics that are given twice, by half, or for another number of channels.
    """

    name: str
    latent_channels: Count
    downsampling: Count
    scale: Positive = 1.0
    shift: Finite = 0.0
    mean: Sequence[Finite] | None = None
    std: Sequence[Positive] | None = None
    statistics: str = "settings"

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            raise ValueError(
                f"autoencoder.statistics={self.statistics} is unknown; use {' or '.join(STATISTICS)}"
            )
        scaled, standardised = (
            (self.scale, self.shift) != (1.0, 0.0),
            self.mean is not None or self.std is not None,
        )
        if scaled + standardised + (self.statistics == "weights") > 1:
            raise ValueError(
                "latents are normalised by autoencoder.scale and autoencoder.shift, by autoencoder.mean and "
                "autoencoder.std, or by autoencoder.statistics=weights; give one of these"
            )
        if standardised and (self.mean is None or self.std is None):
            raise ValueError("autoencoder.mean and autoencoder.std come together; give both")
        for setting, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(
                    f"autoencoder.{setting} has {len(values)} numbers for "
                    f"autoencoder.latent_channels={self.latent_channels}; give one for each channel"
                )

    @property
    def contract(self) -> LatentContract | None:
        """The latent space; None if its statistics are those of the weights."""
        if self.statistics == "weights":
            return None
        if self.mean is not None and self.std is not None:
            return self._space(*from_mean_and_std(self.mean, self.std))
        return self._space(self.scale, self.shift)

    def with_weights(self, about: About, *, source: str) -> LatentContract:
        """The latent space, with the statistics of the weights if they are those.

        Raises ValueError, naming every setting that disagrees with the weights, and for weights without statistics.
        """
        found = self._found(about, source)
        mine, names = self.contract, {"channels": "latent_channels"}
        if mine is None:
            mine = self._space(found.scale, found.shift)
        elif self.mean is not None and self.std is not None:  # compared as they are set
            mine = self._space(statistic(self.std), statistic(self.mean))
            names |= {"scale": "std", "shift": "mean"}
        if differences := mine.differences(found):
            listed = ", ".join(
                f"autoencoder.{names.get(name, name)}={here} (the weights have {there})"
                for name, (here, there) in differences.items()
            )
            raise ValueError(f"the weights of autoencoder.source={source} disagree with {listed}")
        return self.contract or mine

    def _found(self, about: About, source: str) -> LatentContract:
        """What the weights say of the latent space, in the way of the settings; where they are silent, the settings."""
        mean, std = about.mean, about.std
        if self.statistics == "weights":
            if mean is None or std is None:
                raise ValueError(
                    f"autoencoder.statistics=weights: the weights of autoencoder.source={source} have no mean and std; "
                    "give autoencoder.mean and autoencoder.std, or autoencoder.scale"
                )
            scale, shift = from_mean_and_std(mean, std)
        elif self.mean is not None and self.std is not None:
            if mean is None or std is None:
                mean, std = self.mean, self.std
            scale, shift = statistic(std), statistic(mean)
        elif about.scale is None or about.shift is None:
            raise ValueError(
                f"the weights of autoencoder.source={source} have no scale and shift, but a mean and std; set "
                "autoencoder.statistics=weights, or autoencoder.mean and autoencoder.std"
            )
        else:
            scale, shift = about.scale, about.shift
        return LatentContract(self.name, about.channels, about.downsampling, scale, shift)

    def _space(self, scale: Statistic, shift: Statistic) -> LatentContract:
        return LatentContract(self.name, self.latent_channels, self.downsampling, scale, shift)
