"""What is not installed is named with the command that installs it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from rfdit.config.build import build
from rfdit.config.errors import explain_errors
from rfdit.extras import EXTRAS, check_installed, missing_package

ROOT = Path(__file__).parents[1]


def logger_without_its_package(**_: Any) -> None:
    raise ModuleNotFoundError("Module not found: 'wandb'. HINT: Try running `pip install -U 'wandb'`")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No module named 'gradio.routes'", "gradio is not installed; run pip install 'rfdit[demo]'"),
        (
            "Requirement 'wandb>=0.12.10' not met. HINT",
            "wandb is not installed; run pip install 'rfdit[wandb]'",
        ),
        ("Module not found: 'mlflow'. HINT: ", "mlflow is not installed; run pip install 'rfdit[mlflow]'"),
        ("Install s3fs to access S3", "s3fs is not installed; run pip install s3fs"),
        ("cannot import name 'x' from 'y'", None),
        ("No module named 'rfdit.nowhere'", None),
    ],
)
def test_failed_imports(text: str, said: str | None) -> None:
    assert missing_package(ImportError(text)) == said
    assert missing_package(ValueError(text)) is None


def test_a_logger_without_its_package() -> None:
    """In place of Hydra's "Error in call to target"."""
    with (
        pytest.raises(SystemExit, match=r"^error: wandb is not installed; run pip install 'rfdit\[wandb\]'$"),
        explain_errors("train", ValueError),
    ):
        build({"_target_": f"{__name__}.logger_without_its_package", "project": "rfdit"})


def test_a_setting_that_needs_a_package() -> None:
    with pytest.raises(
        ValueError, match=r"^x=true needs nowhere, which is not installed; run pip install nowhere$"
    ):
        check_installed("nowhere", purpose="x=true")


def test_every_extra_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(requirement.startswith(package) for requirement in extras[extra])
