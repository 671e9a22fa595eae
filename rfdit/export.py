"""A run's weights, for others to load: compose, validate, read, write. See conf/export.yaml."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, register, validate
from rfdit.interchange.card import model_card
from rfdit.interchange.diffusers_folder import write_diffusers_folder
from rfdit.interchange.folder import write_folder
from rfdit.sample import open_checkpoint
from rfdit.sample_schema import Source
from rfdit.training.checkpoint import SavedRun


@dataclass
class ExportConfig:
    """`export.yaml`."""

    ckpt: str | None
    weights: str
    format: str
    out: str
    autoencoder: Source = field(default_factory=Source)


def write_safetensors(out: Path, saved: SavedRun, weights: str) -> None:
    """safetensors, JSON and a card, for `rfdit.load`."""
    example = "207" if "num_classes" in saved.config["conditioner"] else '"a red circle"'
    usage = f'import rfdit\n\nmodel = rfdit.load("FOLDER")\nmodel({example}, steps=25)[0].save("picture.png")'
    write_folder(out, saved, weights, card=model_card(saved, weights, library="rfdit", usage=usage))


FORMATS = {"safetensors": write_safetensors, "diffusers": write_diffusers_folder}


def export(cfg: DictConfig) -> Path:
    """One call of the command; returns the folder that was written."""
    config = validate(cfg)
    if config["format"] not in FORMATS:
        raise ValueError(f"format={config['format']} is unknown; use {' or '.join(FORMATS)}")
    saved = open_checkpoint(config["ckpt"])
    if source := config["autoencoder"]["source"]:
        autoencoder = saved.config["autoencoder"] | {"source": source}
        saved = replace(saved, config=saved.config | {"autoencoder": autoencoder})
    out = Path(config["out"])
    FORMATS[config["format"]](out, saved, config["weights"])
    print(f"weights={config['weights']} of {saved.path} at step {saved.step} are in {out}", flush=True)
    return out


@hydra.main(config_path=str(CONFIG_DIR), config_name="export", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("export", ValueError, OSError):
        export(cfg)


def main() -> None:
    """The entry of `python -m rfdit.export`."""
    register()
    ConfigStore.instance().store(name="export_schema", node=ExportConfig)
    with explain_errors("export"):
        _main()


if __name__ == "__main__":
    main()
