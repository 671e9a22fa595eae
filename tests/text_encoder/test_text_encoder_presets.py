"""conf/text_encoder: every option names a class and gives it what it takes."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[2] / "conf/text_encoder"
PRESETS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_binds_and_declares_what_other_nodes_read(path: Path) -> None:
    settings = dict(OmegaConf.load(path))
    assert {"width", "pooled_width", "length"} <= settings.keys()
    inspect.signature(get_class(settings.pop("_target_"))).bind(**settings)


@pytest.mark.parametrize("name", ["clip_l", "clip_bigg"])
def test_clip_s_numbers_and_tags_are_open_clip_s(name: str) -> None:
    import open_clip

    settings = OmegaConf.load(FOLDER / f"{name}.yaml")
    config = open_clip.get_model_config(settings.model)
    assert settings.width == config["text_cfg"]["width"]
    assert settings.pooled_width == config["embed_dim"]
    assert settings.length == config["text_cfg"].get("context_length", 77)
    assert settings.pretrained in open_clip.list_pretrained_tags_by_model(settings.model)
