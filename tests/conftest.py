"""Fixtures, and the shape checks that only tests pay for."""

import collections
import fcntl
import os
from collections.abc import Iterator
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

from rfdit.config import build  # noqa: E402
from tests.command_line import CommandLine  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that in the end no worker waits for the other."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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
    """A cache folder for data=shapes that all tests of all workers share and the user's own is spared."""
    from tests.test_config import composed

    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / "shapes-cache"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or each worker would draw its own
        data = composed("train")["data"]
        for split in ("shards", "val_shards"):
            build(data[split], cache=str(folder / "rfdit"))()
    return folder


@pytest.fixture(scope="module")
def drawn_shapes(shapes_cache: Path) -> Iterator[None]:
    """For modules that start processes: each finds the shapes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shapes_cache))
        yield


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
