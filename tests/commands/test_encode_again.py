"""Encoding into a folder that already has shards: new, changed and unfinished ones."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import rfdit
from rfdit.commands.encode import encode
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.latents.manifest import read_manifest
from rfdit.storage.checked import read_checked_json, write_checked_json
from tests.support.commands.processes import lock_holder
from tests.support.data.latent_shards import DATA, IDENTITY, names, read, settings
from tests.support.data.shards import numbered_sample, write_tar
from tests.support.servers.counting_server import Handler, counting_server
from tests.support.waiting import wait_until

WriteNumbered = Callable[[Sequence[int]], list[str]]
ROOT = Path(rfdit.__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def times(out: Path) -> dict[str, int]:
    """The time at which each shard of latents was written."""
    return {path.stem: path.stat().st_mtime_ns for path in out.glob("*.tar")}


def test_new_shards_are_encoded_and_the_others_left_alone(
    write_numbered: WriteNumbered, tmp_path: Path
) -> None:
    shards, out = write_numbered([2, 3, 1]), tmp_path / "out"
    encode(settings(shards[1:2], out), "first")
    before = times(out)
    encode(settings(shards, out), "second")
    assert times(out).keys() == {"000", "001", "002"}
    assert times(out)["001"] == before["001"]
    manifest = read_manifest(str(out / "latents.json"))
    assert manifest.shards == {name: str(tmp_path / f"{name}.tar") for name in ("000", "001", "002")}
    assert manifest.command == "second"
    encode(settings(shards, out), "third")  # nothing new: the command that made the cache still stands
    assert read_manifest(str(out / "latents.json")) == manifest


@pytest.mark.parametrize("damage", ["cut report", "edited report", "cut shard"])
def test_what_is_not_whole_is_encoded_again(
    write_numbered: WriteNumbered, tmp_path: Path, damage: str
) -> None:
    shards, out = write_numbered([2, 3]), tmp_path / "out"
    encode(settings(shards, out))
    whole, before = {name: (out / name).read_bytes() for name in names(out)}, times(out)
    file = out / ("001.tar" if damage == "cut shard" else "001.json")
    edited = whole[file.name].replace(b'"samples": 3', b'"samples": 4')
    file.write_bytes(edited if damage == "edited report" else whole[file.name][:-30])
    encode(settings(shards, out))
    whole.pop("001.tar.idx")  # which holds the time
    assert {name: (out / name).read_bytes() for name in names(out) if name != "001.tar.idx"} == whole
    assert times(out)["000"] == before["000"]


def test_a_part_that_another_process_encodes_is_refused(
    write_numbered: WriteNumbered, tmp_path: Path
) -> None:
    out, shards = tmp_path / "out", write_numbered([1, 1])
    out.mkdir()
    with (
        lock_holder(out / "encode_1_of_2.lock") as other,
        pytest.raises(ValueError, match=f"^out={out} is in use by process {other.pid} on .*; let it finish"),
    ):
        encode(settings(shards, out, parts=2, part=1))
    assert names(out) == ["latents.json"]
    encode(settings(shards, out, parts=2, part=1))
    assert times(out).keys() == {"001"}


def test_shards_cannot_be_taken_away(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards, out = write_numbered([1, 1]), tmp_path / "out"
    encode(settings(shards, out))
    with pytest.raises(
        ValueError, match=r"data\.shards lacks 1 of the 2 shards of the cache, the first is .*/000"
    ):
        encode(settings(shards[1:], out))


def test_a_shard_of_the_same_name_from_elsewhere_is_another(tmp_path: Path) -> None:
    shards = [
        write_tar(tmp_path / place / "000.tar", [numbered_sample(i)]) for i, place in enumerate(("a", "b"))
    ]
    out = tmp_path / "out"
    encode(settings(shards[:1], out))
    encode(settings(shards, out))
    assert [sample.key for sample in read(out / "000.tar")] == ["000000"]
    (other,) = out.glob("000-*.tar")
    assert [sample.key for sample in read(other)] == ["000001"]


def test_a_shard_that_was_replaced_is_encoded_again(
    write_numbered: WriteNumbered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = write_numbered([2, 2]), tmp_path / "out"
    encode(settings(shards, out))
    before = times(out)
    # As many bytes, and the time it had: what is left to see is that it was changed at all, or its bytes.
    write_tar(Path(shards[0]), [numbered_sample(i) for i in (8, 9)])
    encode(settings(shards, out))
    assert [sample.key for sample in read(out / "000.tar")] == ["000008", "000009"]
    assert times(out)["001"] == before["001"]
    assert "reading 1 shard again, which changed after the encoding" in capsys.readouterr().out


def test_a_shard_that_was_only_touched_is_not(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards, out = write_numbered([2]), tmp_path / "out"
    encode(settings(shards, out))
    before = times(out)
    os.utime(shards[0], ns=(5, 5))
    encode(settings(shards, out))
    assert times(out) == before
    assert read_checked_json(out / "000.json")["fingerprint"]["marks"][1] == 5


def test_latents_of_a_shard_that_can_no_longer_be_read_are_gone(
    write_numbered: WriteNumbered, tmp_path: Path
) -> None:
    shards, out = write_numbered([2, 2]), tmp_path / "out"
    encode(settings(shards, out))
    Path(shards[0]).write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match="1 of 2 shards could not be encoded"):
        encode(settings(shards, out))
    assert names(out) == ["001.json", "001.tar", "001.tar.idx", "latents.json"]


def test_a_kill_while_outdated_latents_are_removed_leaves_nothing_to_train_from(
    write_numbered: WriteNumbered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = write_numbered([2, 2]), tmp_path / "out"
    encode(settings(shards, out))
    write_tar(Path(shards[0]), [numbered_sample(i) for i in (8, 9)])
    unlink = Path.unlink

    def killed_after(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_after)
        with pytest.raises(KeyboardInterrupt):
            encode(settings(shards, out))
    assert not (out / "000.tar").exists()
    with pytest.raises(ValueError, match="1 of 2 shards exist"):
        LatentDecoder(autoencoder=IDENTITY).check([str(out / "001.tar")], (8, 8))
    encode(settings(shards, out))
    assert [sample.key for sample in read(out / "000.tar")] == ["000008", "000009"]


@pytest.fixture
def served(write_numbered: WriteNumbered, tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A shard on a server, and a function that encodes it into `out`."""
    (shard,) = write_numbered([3])
    reader = {"_target_": "rfdit.data.tar.source.TarReader", "cache": str(tmp_path / "cache")}
    with counting_server(tmp_path) as url:
        yield Path(shard), lambda: encode(settings([f"{url}/000.tar"], tmp_path / "out", data__reader=reader))


def test_a_server_that_says_another_date_of_the_same_bytes(
    served: tuple[Path, Callable[[], None]], tmp_path: Path
) -> None:
    (shard, again), out = served, tmp_path / "out"
    again()
    before, report = times(out), read_checked_json(out / "000.json")
    os.utime(shard, (1e9, 1e9))
    again()
    assert times(out) == before
    now = read_checked_json(out / "000.json")
    assert now["fingerprint"]["marks"] != report["fingerprint"]["marks"]
    assert now | {"fingerprint": None} == report | {"fingerprint": None}
    assert Handler.requests["000.tar"] == 2
    again()
    assert Handler.requests["000.tar"] == 2
    write_tar(shard, [numbered_sample(i) for i in (7, 8, 9)])
    os.utime(shard, (2e9, 2e9))  # the server counts whole seconds
    again()
    assert [sample.key for sample in read(out / "000.tar")] == ["000007", "000008", "000009"]


def test_remote_latents_stay_until_the_bytes_are_known(
    served: tuple[Path, Callable[[], None]], tmp_path: Path
) -> None:
    (shard, again), out = served, tmp_path / "out"
    again()
    before, report = times(out), read_checked_json(out / "000.json")
    report["fingerprint"]["sha256"] = None  # as of a reader that makes no copy
    write_checked_json(out / "000.json", report)
    good = shard.read_bytes()
    shard.write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match="1 of 1 shard could not be encoded"):
        again()
    assert times(out) == before
    shard.write_bytes(good)
    os.utime(shard, (1e9, 1e9))
    again()
    assert times(out) != before
    assert len(read(out / "000.tar")) == 3
    assert names(out) == ["000.json", "000.tar", "000.tar.idx", "latents.json"]


def test_training_waits_for_the_whole_cache(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards, out = write_numbered([3, 3, 3]), tmp_path / "out"
    broken = {"_target_": "tests.support.data.list_source.ListReader", "broken": "000005"}
    with pytest.raises(KeyboardInterrupt):
        encode(settings(shards, out, data__reader=broken), "the command")
    decoder, there = LatentDecoder(autoencoder=IDENTITY), [str(out / "000.tar")]
    with pytest.raises(ValueError, match=r"1 of 3 shards exist; finish them with `the command`"):
        decoder.check(there, (8, 8))
    dataclasses.replace(decoder, partial=True).check(there, (8, 8))
    encode(settings(shards, out))
    decoder.check(there, (8, 8))


def start(shards: Path, out: Path, *overrides: str, torchrun: bool = False) -> "subprocess.Popen[str]":
    """The command, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *(TORCHRUN if torchrun else []), "-m", "rfdit", "encode", *DATA,
         f"data.shards={shards}", f"out={out}", *overrides],
        cwd=out.parent, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(out.parent / "c")},
    )  # fmt: skip


@pytest.fixture
def big_shards(tmp_path: Path) -> Path:
    """Four shards that take a while."""
    files = numbered_sample(0)
    for shard in range(4):
        samples = (files | {"__key__": f"{shard}{i:04d}"} for i in range(1000))
        write_tar(tmp_path / f"images/{shard}.tar", samples)
    return tmp_path / "images"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_command_to_go_on(
    big_shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(big_shards, out, "num_workers=1")
    wait_until(lambda: (out / "0.json").exists() and list(out.glob(".*.tar-*")), process)
    os.killpg(process.pid, number)  # as a terminal does, and a scheduler
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, (output, errors)
    assert "Traceback" not in output + errors
    last = output.splitlines()[-1]
    told = re.fullmatch(rf"stopped with (\d) of 4 shards in {out}; go on with: python (.*)", last)
    assert told, last
    assert int(told[1]) == len(list(out.glob("?.json"))) < 4
    assert not list(out.glob(".*"))
    before = times(out)
    done = subprocess.run(
        [sys.executable, *told[2].split()], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(times(out)) == 4
    assert before.items() <= times(out).items()


@pytest.mark.slow
def test_torchrun_goes_on_after_a_rank_was_killed(big_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(big_shards, out, torchrun=True)
    try:
        # Rank 1 of 2 has the shards 1 and 3.
        wait_until(lambda: (out / "1.json").exists() and list(out.glob(".3.tar-*")), process)
        os.kill(rank_of(process.pid, rank=1), signal.SIGKILL)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    left = list(out.glob(".*"))
    assert len(left) == 1, left  # of the one that could not tidy up
    os.utime(left[0], ns=(0, 0))
    before = {name: time for name, time in times(out).items() if (out / f"{name}.json").exists()}
    assert "1" in before
    assert len(before) < 4

    again = start(big_shards, out, torchrun=True)
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "part 1 of 2: 2,000 samples in 2 shards" in output
    assert before.items() <= times(out).items()
    assert [len(read(out / f"{shard}.tar")) for shard in range(4)] == [1000] * 4


def rank_of(launcher: int, *, rank: int) -> int:
    """The process that torchrun started as this rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    named = {Path(f"/proc/{pid}/environ"): int(pid) for pid in children}
    (found,) = (
        pid for file, pid in named.items() if f"RANK={rank}".encode() in file.read_bytes().split(b"\0")
    )
    return found
