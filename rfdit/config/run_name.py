"""Names of runs for loggers, which tell them apart."""

import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

DATED = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d")
LONGEST = 100  # characters of the overrides in a name
LEFT_OUT = ("run_dir", "ckpt", "logger")  # settings that say nothing about a run


def run_name(run_dir: str) -> str:
    """The name of the run in a folder; `${run_name:...}` in YAML.

    It is the folder's, with that of its sweep, and for one that is named by the time what was typed.
    """
    path = Path(run_dir)
    if not DATED.search("/".join(path.parts[-2:])):
        parts = [part for part in path.parts[-2:] if part not in ("outputs", "/", ".")]
        return "/".join(parts)
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    kept = [each for each in typed if not each.lstrip("+").startswith(LEFT_OUT)]
    text = ", ".join(kept) or "default"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"{text} ({' '.join(path.parts[-2:])})"
