"""Published weights of other repositories as a folder for rfdit.load. See conf/convert.yaml."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rfdit.autoencoder.contract import LatentContract
from rfdit.autoencoder.declared import DeclaredLatents
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build, target_of, validate
from rfdit.config.command import command
from rfdit.interchange.card import model_card
from rfdit.interchange.folder import check_free, write_folder
from rfdit.interchange.for_diffusers.transformer import KINDS, TRANSFORMERS, read_transformer
from rfdit.interchange.published.args import VELOCITY, check_source, has_null_class, prediction_of
from rfdit.interchange.published.layout import LAYOUTS, from_published, read_published, unwrapped
from rfdit.protocols import Pretrained
from rfdit.storage.untrusted import explained

USAGE = 'import rfdit\n\nmodel = rfdit.load("FOLDER")\nmodel(207, steps=50)[0].save("image.png")'


def contract_of(node: dict[str, Any], channels: int) -> LatentContract:
    """The latent space of an autoencoder's settings, whose weights are loaded only if they have the statistics.

    Raises ValueError if its latents have another number of channels than the network takes.
    """
    declared = DeclaredLatents(
        **{field.name: node[field.name] for field in fields(DeclaredLatents) if field.name in node}
    )
    contract = declared.contract or build(node).contract
    if contract.channels != channels:
        raise ValueError(
            f"file takes latents of {channels} channels, and autoencoder={contract.name} has "
            f"{contract.channels}; choose the one that it was trained with"
        )
    return contract


def with_statistics(node: dict[str, Any], file: str | None) -> dict[str, Any]:
    """An autoencoder's settings with the mean and std of its latents' channels from a file, if there is one.

    file: a torch or safetensors file with the tensors `mean` and `std`, such as LightningDiT's latents_stats.pt.
    """
    if file is None:
        return node
    channels, (found, _) = node["latent_channels"], read_published(Path(file))
    if found.keys() != {"mean", "std"} or any(x.numel() != channels for x in found.values()):
        raise ValueError(
            f"latents_stats={file} does not have a mean and a std of {channels} channels each, which "
            f"autoencoder={node['name']} has"
        )
    values = {name: x.flatten().tolist() for name, x in found.items()}
    return node | {"statistics": "settings", "scale": 1.0, "shift": 0.0} | values


@contextmanager
def _about(file: str) -> Iterator[None]:
    """Context that names the file in messages about its contents."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        said = text.removeprefix("file") if text.startswith("file ") else f": {text}"
        raise ValueError(text if text.startswith("file=") else f"file={file}{said}") from None


def convert(cfg: DictConfig) -> Path:
    """Runs the command; returns the folder that was written."""
    config = validate(cfg)
    config["autoencoder"] = with_statistics(config["autoencoder"], config["latents_stats"])
    source, out = config["source"], Path(config["out"])
    if source in TRANSFORMERS:
        return _convert_transformer(config, out)
    if source not in LAYOUTS:
        raise ValueError(f"source={source} is unknown; use {', '.join([*LAYOUTS, *TRANSFORMERS])}")
    layout = LAYOUTS[source]
    check_free(out)
    published, args = read_published(Path(config["file"]))
    with _about(config["file"]), explained(f"file={config['file']} is not a network of source={source}"):
        published = unwrapped(published)
        check_source(source, published, args)
        null_class = has_null_class(published, args, config["null_class"])
        state, settings = from_published(published, layout, config["num_heads"], null_class=null_class)
        prediction = prediction_of(source, settings, args)
        latents = contract_of(config["autoencoder"], settings["in_channels"])
    classes = len(state["conditioner.table.weight"]) - 1
    saved = SavedRun(
        path=Path(config["file"]),
        step=0,
        config={
            "model": {"_target_": "rfdit.model.DiT"} | settings,
            "prediction": prediction,
            "conditioner": {
                "_target_": "rfdit.conditioning.LabelConditioner",
                "num_classes": classes,
                "width": settings["width"],
            },
            **{group: config[group] for group in ("autoencoder", "sampler", "guidance")},
        },
        latents=latents.as_dict(),
        network={},
        ema={"ema": state},
    )
    origin = f"These are the published weights of {source}, under other names; their licence applies."
    card = model_card(saved, "ema", library="rfdit", usage=USAGE, origin=origin)
    write_folder(out, saved, "ema", card=card)
    print(f"{source} of {classes} classes is in {out}", flush=True)
    return out


def _convert_transformer(config: dict[str, Any], out: Path) -> Path:
    """A transformer of diffusers, which is conditioned on captions."""
    source, path = config["source"], Path(config["file"])
    check_free(out)
    with _about(config["file"]), explained(f"file={path} is not a network of source={source}"):
        published, theirs = read_transformer(path)
        state, model = TRANSFORMERS[source](published, theirs, config["num_heads"])
        latents = contract_of(config["autoencoder"], model["in_channels"])
    encoder = config["text_encoder"]
    wanted = {"width": model["token_width"], "pooled_width": model["pooled_width"]}
    given = None if encoder is None else {name: encoder.get(name) for name in wanted}
    frozen = encoder is not None and issubclass(target_of(encoder), Pretrained)
    if given != wanted or not frozen:
        raise ValueError(
            f"source={source} needs text_encoder=..., a frozen one with {wanted}, as the network was trained with; "
            f"given: {given if frozen or encoder is None else encoder['_target_'] + ', which is trained'}"
        )
    kind = KINDS[source]
    saved = SavedRun(
        path=path,
        step=0,
        config={
            "model": {"_target_": f"rfdit.model.{kind}"} | model,
            "prediction": VELOCITY,
            "conditioner": {"_target_": "rfdit.conditioning.TextConditioner", "encoder": encoder},
            **{group: config[group] for group in ("text_encoder", "autoencoder", "sampler", "guidance")},
        },
        latents=latents.as_dict(),
        network={},
        ema={"ema": state},
    )
    usage = USAGE.replace("207", '"a red circle"')
    origin = f"These are the published weights of {source}, under other names; their licence applies."
    card = model_card(saved, "ema", library="rfdit", usage=usage, origin=origin)
    write_folder(out, saved, "ema", card=card)
    print(f"{source}, as {kind}, is in {out}", flush=True)
    return out


@command("convert")
def main(cfg: DictConfig) -> None:
    """The program `rfdit convert`."""
    convert(cfg)
