"""rfdit: latent Diffusion Transformers under rectified flow."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfdit.loading import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`rfdit.load`, imported when it is asked for: with it comes Hydra."""
    if name == "load":
        from rfdit.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
