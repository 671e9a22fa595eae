"""Optional packages, and the extras of `pip install 'rfdit[EXTRA]'` that bring them."""

import re
from importlib.util import find_spec

EXTRAS = {
    "aiohttp": "urls",
    "gradio": "demo",
    "mlflow": "mlflow",
    "peft": "adapters",
    "pyarrow": "urls",
    "torchao": "fp8",
    "wandb": "wandb",
}
SWEEPS = {
    "joblib",
    "optuna",
    "submitit_local",
    "submitit_slurm",
}  # options of Hydra that the extra sweeps brings
# How Python, Lightning and fsspec name what is missing.
MISSING = re.compile(r"(?:No module named|Module not found:|Requirement) '([\w-]+)|\bInstall (\w+) to access")


def check_installed(package: str, *, purpose: str) -> None:
    """Raises ValueError, with what to install, if a package is not there. purpose: the setting that needs it."""
    if find_spec(package) is None:
        raise ValueError(f"{purpose} needs {package}, which is not installed; run {install(package)}")


def install(package: str) -> str:
    """The command that installs an optional package."""
    extra = EXTRAS.get(package)
    return f"pip install {package}" if extra is None else f"pip install 'rfdit[{extra}]'"


def missing_package(error: BaseException | None) -> str | None:
    """A sentence that says what to install, for the failed import of a package; None for any other error."""
    if not isinstance(error, ImportError) or not (found := MISSING.search(str(error))):
        return None
    package = found[1] or found[2]
    if package.startswith("rfdit"):
        return None
    return f"{package} is not installed; run {install(package)}"
