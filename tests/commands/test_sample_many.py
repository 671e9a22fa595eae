"""Tens of thousands of images: in shards or one array, on several devices, killed and resumed."""

import json
import os
import signal
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.support.commands.command_line import TWENTY_STEPS, CommandLine
from tests.support.commands.processes import alive, finish, lock_holder, start_sampling
from tests.support.training.runs import Trained
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PROMPTS = "prompts=[a small red circle,a large blue star,a large green square]"


@pytest.fixture
def run(trained: Trained) -> str:
    trained(*TWENTY_STEPS)
    return "ckpt=run"


def files(folder: str) -> dict[str, bytes]:
    """The files that must not depend on processes, kills and clocks: all but those about each start."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    of_a_start = {"environment.jsonl", "sample.lock"}
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.name not in of_a_start}


def plain(cli: CommandLine, *overrides: str) -> np.ndarray:
    """The images as output=png has them."""
    cli.sample(*overrides, "out=plain")
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path("plain").glob("0*.png"))])


def test_shards_that_webdataset_reads(cli: CommandLine, run: str) -> None:
    request = [run, PROMPTS, "count=4", "first_key=7", "batch_size=5"]
    printed = cli.sample(*request, "output=tar", "output.images_per_shard=5", "out=out")
    assert "12 images in 3 shards in out" in printed
    shards = [f"out/0000{i}.tar" for i in range(3)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in samples] == [f"{i:08d}" for i in range(12)]
    assert samples[4]["txt"] == b"a large blue star"
    assert json.loads(samples[4]["json"])["key"] == 11
    images = np.stack([np.asarray(Image.open(BytesIO(s["png"]))) for s in samples])
    assert np.array_equal(images, plain(cli, *request))
    # They are data like any other.
    cli.train(
        "run_dir=next", "data=laion", "data.shards=out", "data.resolution=32", "data.filters.min_size=8"
    )


def test_an_array_that_adm_reads(cli: CommandLine, run: str) -> None:
    request = [run, PROMPTS, "count=4", "batch_size=5"]
    printed = cli.sample(*request, "output=npz", "output.images_per_part=5", "out=out")
    assert "12 images in out/samples.npz" in printed
    with np.load("out/samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"], plain(cli, *request))
    assert not Path("out/parts").exists()
    before = files("out")
    cli.sample(*request, "output=npz", "output.images_per_part=5", "out=out")  # all there is done
    assert files("out") == before


def test_only_what_is_missing_is_made(cli: CommandLine, run: str) -> None:
    request = [
        run,
        PROMPTS,
        "count=4",
        "batch_size=5",
        "output=tar",
        "output.images_per_shard=5",
        "out=out",
    ]
    cli.sample(*request)
    whole = files("out")
    Path("out/00001.tar").unlink()
    untouched = Path("out/00000.tar").stat().st_mtime_ns
    left = Path("out/.00001.tar-abcd_123.partial")
    left.write_bytes(b"what a killed run has left")
    os.utime(left, (0, 0))  # long ago
    cli.sample(*request)
    assert files("out") == whole
    assert Path("out/00000.tar").stat().st_mtime_ns == untouched


def test_other_images_are_not_mixed_in(cli: CommandLine, run: str) -> None:
    request = [run, PROMPTS, "output=tar", "out=out"]
    cli.sample(*request)
    message = cli.error("sample", *request, "seed=1", "sampler.steps=3")
    assert message.startswith("out=out holds images of other settings: config.sampler.steps=2 (now 3), ")
    assert "config.seed=0 (now 1)" in message


def test_two_commands_do_not_share_a_folder(cli: CommandLine, run: str, tmp_path: Path) -> None:
    """Whatever they write, since a second one in the same folder would mix its images with the first one's."""
    with lock_holder(tmp_path / "out/sample.lock"):
        message = cli.error("sample", run, PROMPTS, "out=out")
    assert message.startswith("out=out is in use by process ")
    assert [path.name for path in Path("out").iterdir()] == ["sample.lock"]


def test_another_launcher_must_start_as_many(
    cli: CommandLine, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    message = cli.error("sample", run, PROMPTS, "devices=2")
    assert message.startswith("devices=2, but a launcher has already started 1 process")
    assert cli.error("sample", run, PROMPTS, "devices=0") == "devices=0 must be at least 1"


def test_any_number_of_processes_makes_the_same_files(cli: CommandLine, run: str, tmp_path: Path) -> None:
    outputs = {
        ("png", 3): [
            "prompts=[a small red circle,a large blue star]",
            "seeds=[0,1,2]",
            "scales=[1,3]",
            "batch_size=2",
        ],
        ("npz", 2): [PROMPTS, "count=7", "batch_size=4", "output=npz", "output.images_per_part=6"],
        ("between", 2): [PROMPTS, "seeds=[0,1,0]", "use=interpolate", "use.frames=5", "batch_size=2"],
    }
    for (name, devices), request in outputs.items():
        cli.sample(run, *request, f"out={name}1")
        command = [run, *request, "sampler.steps=2", f"devices={devices}", f"out={name}{devices}"]
        finish(start_sampling(*command, cwd=tmp_path))
        one = files(f"{name}1")
        assert len(one) > {"png": 12, "npz": 1, "between": 11}[name]
        assert files(f"{name}{devices}") == one


def test_what_is_wrong_is_said_once(cli: CommandLine, run: str, tmp_path: Path) -> None:
    process = start_sampling(run, PROMPTS, "devices=2", "out=/proc/nowhere", cwd=tmp_path)
    assert process.communicate(timeout=120)[0].count("error: ") == 1
    assert process.returncode == 1


def test_a_killed_run_of_2000_resumes_to_the_same_set(cli: CommandLine, run: str, tmp_path: Path) -> None:
    request = [
        run, PROMPTS, "total=2000", "batch_size=50", "sampler.steps=2", "precision=fp32",
        "output=npz", "output.images_per_part=100",
    ]  # fmt: skip
    cli.sample(*request, "out=whole")
    killed = start_sampling(*request, "out=killed", cwd=tmp_path)
    try:
        wait_until(lambda: len(list(Path("killed/parts").glob("*.npy"))) >= 7, killed)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=120)
    done = len(list(Path("killed/parts").glob("*.npy")))
    assert 7 <= done < 20
    assert not Path("killed/samples.npz").exists()
    cli.sample(*request, "out=killed")
    assert files("killed") == files("whole")
    with np.load("killed/samples.npz") as archive:
        assert archive["arr_0"].shape == (2000, 32, 32, 3)


def end(process: "subprocess.Popen[str]") -> str:
    """The output, if the process and all that it started end by themselves."""
    try:
        return process.communicate(timeout=120)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def running(process: "subprocess.Popen[str]", folder: str, files: int) -> list[int]:
    """Waits until a run of two processes has written so many files; both processes, the first one first."""
    wait_until(lambda: len(list(Path(folder).glob("*.tar"))) >= files, process)
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    children = [int(pid) for pid, parent in map(str.split, listed.splitlines()) if parent == str(process.pid)]
    return [process.pid, *children]


LONG = [PROMPTS, "total=6000", "batch_size=10", "output=tar", "output.images_per_shard=10", "devices=2"]


@pytest.mark.parametrize("both", [True, False], ids=["terminal", "first process"])
def test_an_interrupted_run_ends_and_keeps_what_is_finished(
    cli: CommandLine, run: str, tmp_path: Path, both: bool
) -> None:
    """Ctrl-C reaches both processes; a scheduler's signal perhaps only the first."""
    process = start_sampling(run, *LONG, "out=out", cwd=tmp_path)
    family = running(process, "out", 4)
    assert len(family) == 2
    for pid in family if both else family[:1]:
        os.kill(pid, signal.SIGINT)
    printed = end(process)
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "stopped; the finished images are in out"
    shards = sorted(Path("out").glob("*.tar"))
    assert 4 <= len(shards) < 600
    for shard in shards:  # whole ones
        assert len(list(webdataset.WebDataset([str(shard)], shardshuffle=False, empty_check=False))) == 10
    wait_until(lambda: not any(map(alive, family)))


@pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
def test_no_process_outlives_another_that_was_killed(
    cli: CommandLine, run: str, tmp_path: Path, number: int
) -> None:
    process = start_sampling(run, *LONG, "out=out", cwd=tmp_path)
    family = running(process, "out", 4)
    os.kill(family[number], signal.SIGKILL)
    printed = end(process)
    assert process.returncode == (-signal.SIGKILL, 1)[number]
    said = [line for line in printed.splitlines() if "error" in line]
    assert said == ["error: rank 1 was killed by SIGKILL"] * number
    assert len(list(Path("out").glob("*.tar"))) >= 4
    wait_until(lambda: not any(map(alive, family)))
