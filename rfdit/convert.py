"""Others' published weights as a folder for rfdit.load: compose, validate, read, map, write. See conf/convert.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from rfdit.autoencoder.contract import LatentContract
from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, register, validate
from rfdit.interchange.card import model_card
from rfdit.interchange.folder import check_free, write_folder
from rfdit.interchange.published import LAYOUTS, from_published, read_published
from rfdit.training.checkpoint import SavedRun

USAGE = 'import rfdit\n\nmodel = rfdit.load("FOLDER")\nmodel(207, steps=50)[0].save("picture.png")'


@dataclass
class ConvertConfig:
    """`convert.yaml`."""

    source: str
    file: str
    out: str
    num_heads: int | None
    autoencoder: Any
    sampler: Any
    guidance: Any


def contract_of(node: dict[str, Any], channels: int) -> LatentContract:
    """The latent space that an autoencoder's settings declare, without its weights.

    Raises ValueError if its latents do not have the channels that the network takes.
    """
    contract = LatentContract(
        name=node["name"],
        channels=node["latent_channels"],
        downsampling=node["downsampling"],
        scale=node["scale"],
        shift=node.get("shift", 0.0),
    )
    if contract.channels != channels:
        raise ValueError(
            f"file takes latents of {channels} channels, and autoencoder={contract.name} has "
            f"{contract.channels}; choose the one that it was trained with"
        )
    return contract


def convert(cfg: DictConfig) -> Path:
    """One call of the command; returns the folder that was written."""
    config = validate(cfg)
    source, out = config["source"], Path(config["out"])
    if source not in LAYOUTS:
        raise ValueError(f"source={source} is unknown; use {', '.join(LAYOUTS)}")
    layout = LAYOUTS[source]
    check_free(out)
    state, settings = from_published(read_published(Path(config["file"])), layout, config["num_heads"])
    classes = len(state["conditioner.table.weight"]) - 1
    saved = SavedRun(
        path=Path(config["file"]),
        step=0,
        config={
            "model": {"_target_": "rfdit.model.DiT"} | settings,
            "conditioner": {
                "_target_": "rfdit.conditioning.LabelConditioner",
                "num_classes": classes,
                "width": settings["width"],
            },
            **{group: config[group] for group in ("autoencoder", "sampler", "guidance")},
        },
        latents=contract_of(config["autoencoder"], settings["in_channels"]).as_dict(),
        network={},
        ema={"ema": state},
    )
    origin = f"These are the published weights of {source}, under other names; their licence applies."
    card = model_card(saved, "ema", library="rfdit", usage=USAGE, origin=origin)
    write_folder(out, saved, "ema", card=card, prediction=layout.prediction)
    print(f"{source} of {classes} classes, which predicts {layout.prediction}, is in {out}", flush=True)
    return out


@hydra.main(config_path=str(CONFIG_DIR), config_name="convert", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("convert", ValueError, OSError):
        convert(cfg)


def main() -> None:
    """The entry of `python -m rfdit.convert`."""
    register()
    ConfigStore.instance().store(name="convert_schema", node=ConvertConfig)
    with explain_errors("convert"):
        _main()


if __name__ == "__main__":
    main()
