"""Messages of other packages, which stay off the screen unless a user can act on them."""

import logging
import os
import sys
import warnings

# Loggers that tell at every start what is of no use here: missing extensions, load reports, hook counts.
CHATTY = (
    *(
        "lightning.pytorch",
        "lightning.fabric",
        "torch.utils._pytree",
        "torchao",
        "accelerate",
        "transformers",
    ),
    *("diffusers", "open_clip", "timm", "fsspec", "httpx"),
)
# Between a warning and who gives it.
PASSED_ON = (
    "warnings",
    "lightning.fabric.utilities.rank_zero",
    "lightning_utilities",
    "lightning.pytorch.utilities",
)
ACTIONABLE = ("CUDA", "driver", "GPU")  # words in a warning of others that a user should read


def quiet_others() -> None:
    """Print rfdit's own warnings in one line, without the source, and those of others only into the run's log."""
    warnings.formatwarning = _formatted
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What is printed for a warning; an empty text for nothing."""
    if _is_own() or any(word in str(message) for word in ACTIONABLE):
        return f"warning: {message}\n"
    log_only = getattr(sys.stderr, "log_only", None)
    if log_only is not None:
        log_only(f"{filename}:{lineno}: {category.__name__}: {message}\n")
    return ""


def _is_own() -> bool:
    """True for a warning that code of rfdit gives, whatever its stacklevel says."""
    frame = sys._getframe(1)
    names = (__name__, *PASSED_ON)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(names):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).startswith("rfdit.")
