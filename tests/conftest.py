"""Fixtures, and the shape checks that only tests pay for."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Every public signature's jaxtyping annotation is checked at run time while the tests run.
# As everywhere in Python, an int will do where a float is asked for.
install_import_hook("rfdit", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch  # noqa: E402

if not torch.cuda.is_available():
    # Triton reads this when it is imported: its kernels run on the CPU, step by step.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.command_line import CommandLine  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and pretrained weights, named by RFDIT_TEST_ASSETS."""
    folder = os.environ.get("RFDIT_TEST_ASSETS")
    if not folder:
        pytest.skip("RFDIT_TEST_ASSETS is not set: this test needs real data and pretrained weights")
    return Path(folder)


@pytest.fixture(scope="session")
def shapes_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for data=shapes that the tests share and the user's own is spared."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    shapes_cache: Path,
) -> CommandLine:
    """The command line, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shapes_cache))
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="session")
def emoji_shard(assets: Path) -> Path:
    """The smallest shard of captioned, labelled emoji."""
    return assets / "data" / "emoji" / "emoji-0007.tar"
