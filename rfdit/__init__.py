"""rfdit: latent Diffusion Transformers under rectified flow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rfdit.processes.lazy_packages import import_lazily
from rfdit.processes.threads import wait_briefly

if TYPE_CHECKING:
    from rfdit.commands.train import train_composed as train
    from rfdit.config.compose import compose as compose
    from rfdit.loading import load as load

__version__ = "0.1.0"
wait_briefly()  # before anything imports torch
import_lazily()
__all__ = ["__version__", "compose", "load", "train"]
# What `rfdit.NAME` is; imported at the first access, since it takes seconds.
LAZY = {
    "compose": ("rfdit.config.compose", "compose"),
    "load": ("rfdit.loading", "load"),
    "train": ("rfdit.commands.train", "train_composed"),
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
