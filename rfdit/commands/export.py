"""A run's weights, for others to load: compose, validate, read, write. See conf/export.yaml."""

from pathlib import Path

from omegaconf import DictConfig

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import validate
from rfdit.config.command import command
from rfdit.interchange.adapter_folder import write_diffusers_lora, write_peft_folder
from rfdit.interchange.card import model_card
from rfdit.interchange.folder import write_folder
from rfdit.interchange.for_diffusers.folder import write_diffusers_folder
from rfdit.interchange.source import open_adapters, open_model, with_sources


def write_safetensors(out: Path, saved: SavedRun, weights: str) -> None:
    """Writes safetensors, JSON and a card, for `rfdit.load`."""
    example = "207" if saved.knows_labels else '"a red circle"'
    usage = f'import rfdit\n\nmodel = rfdit.load("FOLDER")\nmodel({example}, steps=25)[0].save("image.png")'
    write_folder(out, saved, weights, card=model_card(saved, weights, library="rfdit", usage=usage))


FORMATS = {"safetensors": write_safetensors, "diffusers": write_diffusers_folder}
OF_ADAPTERS = {"peft": write_peft_folder, "diffusers_lora": write_diffusers_lora}  # without their base


def export(cfg: DictConfig) -> Path:
    """Runs the command; returns the folder that was written."""
    config = validate(cfg)
    form, out = config["format"], Path(config["out"])
    if form not in FORMATS | OF_ADAPTERS:
        raise ValueError(f"format={form} is unknown; use {', '.join(FORMATS | OF_ADAPTERS)}")
    whole = form in FORMATS
    if whole:
        saved = open_model(config["ckpt"], base=config["base"], packages=config["packages"])
    else:
        saved = open_adapters(config["ckpt"])
    saved = with_sources(saved, autoencoder=config["autoencoder"]["source"])
    (FORMATS | OF_ADAPTERS)[form](out, saved, config["weights"])
    print(f"weights={config['weights']} of {saved.path} at step {saved.step} are in {out}", flush=True)
    return out


@command("export")
def main(cfg: DictConfig) -> None:
    """The program `rfdit export`."""
    export(cfg)
