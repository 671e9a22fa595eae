"""A page on which to try a model: compose, validate, load, serve. See conf/demo.yaml and docs/demo.md."""

import os
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, composed, register, validate
from rfdit.playground.choices import guidances, solvers
from rfdit.playground.page import Page
from rfdit.playground.painter import Painter
from rfdit.playground.settings import Form, quoted
from rfdit.sample_schema import Source
from rfdit.sampling.classes import captions, class_names
from rfdit.sampling.load import open_checkpoint
from rfdit.training.checkpoint import SavedRun

# Settings of sample.py that belong to the model and not to a picture.
OF_THE_MODEL = ("accelerator", "precision", "class_names", "packages")
ENCODERS = ("autoencoder", "text_encoder")


@dataclass
class DemoConfig:
    """`demo.yaml`."""

    ckpt: str | None
    weights: str | None
    host: str
    port: int
    max_steps: int
    max_pictures: int
    previews: int
    leave_out: list[str]
    class_names: str | None
    accelerator: str
    precision: str
    packages: list[str]
    autoencoder: Source = field(default_factory=Source)
    text_encoder: Source = field(default_factory=Source)


def register_schema() -> None:
    """Makes `DemoConfig` known to Hydra."""
    ConfigStore.instance().store(name="demo_schema", node=DemoConfig)


def make_painter(config: dict[str, Any]) -> Painter:
    """What the page's visitors share, from the validated `demo.yaml`."""
    saved = open_checkpoint(config["ckpt"])
    conditioner, classes = saved.config["conditioner"], None
    if "num_classes" in conditioner:
        names = class_names(saved.config, config["class_names"])
        classes = captions(range(conditioner["num_classes"]), names)
    form = Form(
        solvers=solvers(config["leave_out"]),
        guidances=guidances(config["leave_out"]),
        classes=classes,
        max_steps=config["max_steps"],
        max_pictures=config["max_pictures"],
    )
    overrides = model_overrides(saved, config)
    return Painter(saved=saved, form=form, overrides=overrides, previews=config["previews"])


def model_overrides(saved: SavedRun, config: dict[str, Any]) -> list[str]:
    """What says to sample.py which model it is, wherever that is not its default."""
    default = composed("sample")
    weights = config["weights"] or ("ema" if saved.ema else "raw")
    values = {"ckpt": str(saved.path), "weights": weights} | {name: config[name] for name in OF_THE_MODEL}
    changed = {name: value for name, value in values.items() if value != default[name]}
    changed |= {f"{name}.source": source for name in ENCODERS if (source := config[name]["source"])}
    return [f"{name}={_written(value)}" for name, value in changed.items()]


def _written(value: str | list[str]) -> str:
    """A text or a list of texts, as Hydra reads it."""
    return quoted(value) if isinstance(value, str) else f"[{','.join(map(quoted, value))}]"


def title(painter: Painter) -> str:
    """What the model is, in a line."""
    saved, pipeline = painter.saved, painter.pipeline
    height, width = pipeline.image_size
    arithmetic = "bf16" if pipeline.bf16 else "fp32"
    return f"{saved.path}, step {saved.step}: {width} x {height} pixels, on {pipeline.device.type} in {arithmetic}"


def check_address(host: str, port: int) -> None:
    """Raises ValueError where nobody can listen."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"host={host}, port={port} cannot be served from ({error}); give another port="
        ) from None


def serve(config: dict[str, Any]) -> None:
    """Until Ctrl-C."""
    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio, which is not installed; run pip install 'rfdit[demo]'")
    check_address(config["host"], config["port"])
    painter = make_painter(config)
    with tempfile.TemporaryDirectory(prefix="rfdit_demo_") as folder:
        # Read when gradio is imported: no word to its makers, no files outside of the folder.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, HF_HUB_DISABLE_TELEMETRY="1"
        )
        page = Page(painter=painter, title=title(painter), folder=Path(folder))
        page.launch(host=config["host"], port=config["port"])
        address = f"http://{config['host']}:{config['port']}"
        print(f"{address} shows {title(painter)}; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            page.blocks.close(verbose=False)
    print("the page has ended", flush=True)


@hydra.main(config_path=str(CONFIG_DIR), config_name="demo", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    torch.set_float32_matmul_precision("high")  # as sample.py
    GlobalHydra.instance().clear()  # settings are composed anew for each painting
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with explain_errors("demo", ValueError, OSError):
        serve(validate(cfg))


def main() -> None:
    """The entry of `python -m rfdit.demo`."""
    register()
    register_schema()
    with explain_errors("demo"):
        _main()


if __name__ == "__main__":
    main()
