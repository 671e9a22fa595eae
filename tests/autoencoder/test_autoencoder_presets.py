"""conf/autoencoder: every option names a class and gives it what it takes."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

PRESETS = sorted((Path(__file__).parents[2] / "conf/autoencoder").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_binds_and_declares_what_other_nodes_read(path: Path) -> None:
    settings = dict(OmegaConf.load(path))
    assert {"latent_channels", "downsampling"} <= settings.keys()
    assert settings.get("name", "identity") == path.stem
    inspect.signature(get_class(settings.pop("_target_"))).bind(**settings)


@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [("sd", 0.18215, 0), ("sdxl", 0.13025, 0), ("sd3", 1.5305, 0.0609), ("flux", 0.3611, 0.1159)],
)
def test_normalisation_of_the_published_spaces(name: str, scale: float, shift: float) -> None:
    path = next(path for path in PRESETS if path.stem == name)
    settings = OmegaConf.load(path)
    assert (settings.scale, settings.shift) == (scale, shift)
