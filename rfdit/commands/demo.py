"""A page on which to try a model: compose, validate, load, serve. See conf/demo.yaml and docs/demo.md."""

import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import composed, validate
from rfdit.config.command import command
from rfdit.config.overrides import quoted
from rfdit.extras import check_installed
from rfdit.generate.classes import captions, class_names
from rfdit.interchange.source import open_model
from rfdit.playground.form import Form
from rfdit.playground.model import PlaygroundModel
from rfdit.playground.page import Page

# Settings of sample.py that belong to the model and not to an image.
OF_THE_MODEL = ("accelerator", "precision", "class_names", "packages", "base")
ENCODERS = ("autoencoder", "text_encoder")


def load_model(config: dict[str, Any]) -> PlaygroundModel:
    """The model that all visitors share, from the validated `demo.yaml`."""
    saved, classes = open_model(config["ckpt"], base=config["base"], packages=config["packages"]), None
    if saved.num_classes is not None:
        names = class_names(saved, config["class_names"])
        classes = captions(range(saved.num_classes), names)
    form = Form(
        classes=classes,
        max_steps=config["max_steps"],
        max_images=config["max_images"],
        leave_out=config["leave_out"],
    )
    overrides = model_overrides(saved, config)
    return PlaygroundModel(saved=saved, form=form, overrides=overrides, previews=config["previews"])


def model_overrides(saved: SavedRun, config: dict[str, Any]) -> list[str]:
    """The settings of sample.py that select the model, where they differ from its defaults."""
    default = composed("sample")
    weights = config["weights"] or ("ema" if saved.ema else "raw")
    values = {"ckpt": str(saved.path), "weights": weights} | {name: config[name] for name in OF_THE_MODEL}
    changed = {name: value for name, value in values.items() if value != default[name]}
    changed |= {f"{name}.source": source for name in ENCODERS if (source := config[name]["source"])}
    return [
        f"{name}={quoted(value) if isinstance(value, str) else '[' + ','.join(map(quoted, value)) + ']'}"
        for name, value in changed.items()
    ]


def check_address(host: str, port: int) -> None:
    """Raises ValueError for an address that cannot be listened on."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"host={host}, port={port} cannot be listened on ({error}); give another port="
        ) from None


def serve(config: dict[str, Any]) -> None:
    """Serves the page until Ctrl-C, or SIGTERM, with which services are ended."""
    check_installed("gradio", purpose="the page")
    check_address(config["host"], config["port"])
    model = load_model(config)
    model.warm_up()
    with tempfile.TemporaryDirectory(prefix="rfdit_demo_") as folder:
        # Read when gradio is imported: it sends no telemetry, and writes into this folder only.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, HF_HUB_DISABLE_TELEMETRY="1"
        )
        page = Page(model=model, folder=Path(folder))
        page.launch(host=config["host"], port=config["port"])
        address = f"http://{config['host']}:{config['port']}"
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
        try:
            print(f"{address} shows {model.title}; Ctrl-C ends it", flush=True)
            while True:  # an endless wait might miss a Ctrl-C that comes as it begins
                time.sleep(1)
        except KeyboardInterrupt:
            page.blocks.close(verbose=False)
            print("the page has ended", flush=True)
            raise SystemExit(128 + signal.SIGINT) from None


@command("demo")
def main(cfg: DictConfig) -> None:
    """The program `rfdit demo`."""
    torch.set_float32_matmul_precision("high")  # as in sample.py
    GlobalHydra.instance().clear()  # settings are composed anew for each request
    serve(validate(cfg))
