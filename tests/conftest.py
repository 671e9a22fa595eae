"""Fixtures, and the shape checks that only tests pay for."""

import collections
import fcntl
import itertools
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import rfdit  # noqa: F401  # before torch, as every program does: it sets how threads wait

pytest.register_assert_rewrite("tests.support")

# The packages with tensors, whose annotations are checked at run time while the fast tests run.
TENSORS = [
    "autoencoder", "batch", "conditioning", "data.decode", "data.latents", "data.sample", "data.stream.transfer", "ema",
    "eval", "flow", "generate", "image_grid", "images", "model", "network", "objective", "protocols", "randomness",
    "sampler", "text_encoder", "training",
]  # fmt: skip
# RFDIT_TEST_TYPES=all checks every signature, as `make test-slow` does.
CHECKED = ["rfdit"] if os.environ.get("RFDIT_TEST_TYPES") == "all" else [f"rfdit.{name}" for name in TENSORS]
# As everywhere in Python, an int can be given for a float.
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch  # noqa: E402

if not torch.cuda.is_available():
    # Triton reads this when it is imported: its kernels run on the CPU, step by step.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from rfdit.config.build import build  # noqa: E402
from tests.support.commands.command_line import FEW_SHAPES, CommandLine  # noqa: E402
from tests.support.commands.composing import compose_once, composed  # noqa: E402

compose_once()

# Where this process was started in the background, it ignores Ctrl-C, and what it starts would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that in the end no worker waits for the other."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _own_ctrl_c() -> Iterator[None]:
    """A command that a test runs in this process does not keep its handler."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


pytest_plugins = [
    f"tests.support.{name}"
    for name in ("data.shards", "training.checkpoints", "models.networks", "training.runs")
]


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
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / "shapes-cache"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or each worker would draw its own
        data = composed("train", FEW_SHAPES)["data"]
        for split in ("shards", "val_shards"):
            build(data[split], cache=str(folder / "rfdit"))()
    return folder


@pytest.fixture(scope="module")
def drawn_shapes(shapes_cache: Path) -> Iterator[None]:
    """Draws the shapes for modules that start processes, so that each process finds them."""
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


@pytest.fixture(scope="session")
def few_emoji(emoji_shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first eight samples of that shard, under its name."""
    path = tmp_path_factory.mktemp("few") / emoji_shard.name
    with tarfile.open(emoji_shard) as whole, tarfile.open(path, "w") as few:
        samples = itertools.groupby(whole, key=lambda member: member.name.partition(".")[0])
        for _, members in itertools.islice(samples, 8):
            for member in members:
                few.addfile(member, whole.extractfile(member))
    return path
