"""Encoding shards: files written, work done again, division among processes, and settings refused."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from hydra import compose, initialize_config_dir

import rfdit.commands.encode
from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.checkpoint.resume import encoder_settings
from rfdit.commands.encode import encode, this_part
from rfdit.config.build import CONFIG_DIR, register
from rfdit.data.decode import decode_image
from rfdit.data.latents.encode import EncodePart, shard_names
from rfdit.data.latents.manifest import LatentManifest, read_manifest, update_manifest
from rfdit.images import to_float
from rfdit.storage.checked import read_checked_json
from rfdit.text_encoder.bpe import BPEEncoder
from tests.support.data.latent_shards import BPE, DATA, IDENTITY, names, read, settings
from tests.support.data.shards import Files, numbered_sample

WriteShard = Callable[[str, Iterable[Files]], str]
WriteNumbered = Callable[[Sequence[int]], list[str]]


def test_every_sample_arrives_with_what_was_beside_it(write_shard: WriteShard, tmp_path: Path) -> None:
    metadata = json.dumps({"a": "é"}).encode()
    samples = [numbered_sample(i) | {"json": metadata} for i in range(5)]
    encode(settings([write_shard("a.tar", samples)], tmp_path / "out"))
    assert names(tmp_path / "out") == ["a.json", "a.tar", "a.tar.idx", "latents.json"]
    found = read(tmp_path / "out/a.tar")
    assert [sample.key for sample in found] == [f"{i:06d}" for i in range(5)]
    assert [sample.caption for sample in found] == [f"number {i}" for i in range(5)]
    assert [sample.label for sample in found] == list(range(5))
    for sample, original in zip(found, samples):
        assert torch.equal(sample.moments.float(), to_float(decode_image(original["png"], (8, 8))))
    raw = next(iter(webdataset.WebDataset(str(tmp_path / "out/a.tar"), shardshuffle=False)))
    assert raw["json"] == metadata
    report = read_checked_json(tmp_path / "out/a.json")
    tar = (tmp_path / "out/a.tar").read_bytes()
    assert report.pop("file") == {"bytes": len(tar), "blake2b": blake2b(tar, digest_size=16).hexdigest()}
    assert report.pop("fingerprint")["sha256"] == sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert report == {"source": str(tmp_path / "a.tar"), "samples": 5, "skipped": {}}


def test_the_folder_says_how_it_was_made(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    autoencoder = IDENTITY | {"source": "here", "slice_size": 3, "dtype": "fp32", "cache_size": 7}
    assert encoder_settings(autoencoder) == IDENTITY
    encode(settings(write_numbered([1, 1]), tmp_path / "out", data__resolution=[8, 8]))
    manifest = json.loads((tmp_path / "out/latents.json").read_text())
    assert manifest["latents"] == IdentityAutoencoder().contract.as_dict()
    assert manifest["autoencoder"] == IDENTITY
    assert manifest["resolution"] == [8, 8]
    assert manifest["text_encoder"] is None
    assert manifest["dtype"] == "auto"
    assert manifest["shards"] == {name: str(tmp_path / f"{name}.tar") for name in ("000", "001")}


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(write_numbered: WriteNumbered, tmp_path: Path, workers: int) -> None:
    shards = write_numbered([7])
    encode(settings(shards, tmp_path / "alone"))
    encode(settings(shards, tmp_path / "together", num_workers=workers))
    assert (tmp_path / "alone/000.tar").read_bytes() == (tmp_path / "together/000.tar").read_bytes()


def test_every_pass_of_the_encoder_has_the_same_shape(
    write_numbered: WriteNumbered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, moments = [], IdentityAutoencoder.moments

    def watched(autoencoder: IdentityAutoencoder, images: torch.Tensor) -> torch.Tensor:
        shapes.append(len(images))
        return moments(autoencoder, images)

    monkeypatch.setattr(IdentityAutoencoder, "moments", watched)
    encode(settings(write_numbered([7]), tmp_path / "out", batch_size=4))
    assert shapes == [4, 4]


def test_a_kill_loses_the_shard_at_hand_and_no_other(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards, out = write_numbered([3, 3, 3]), tmp_path / "out"
    broken = {"_target_": "tests.support.data.list_source.ListReader", "broken": "000005"}
    with pytest.raises(KeyboardInterrupt):
        encode(settings(shards, out, data__reader=broken))
    assert names(out) == ["000.json", "000.tar", "000.tar.idx", "latents.json"]
    before = (out / "000.tar").stat().st_mtime_ns
    encode(settings(shards, out))
    assert names(out) == [
        "000.json",
        "000.tar",
        "000.tar.idx",
        "001.json",
        "001.tar",
        "001.tar.idx",
        "002.json",
        "002.tar",
        "002.tar.idx",
        "latents.json",
    ]
    assert (out / "000.tar").stat().st_mtime_ns == before
    keys = [sample.key for i in range(3) for sample in read(out / f"00{i}.tar")]
    assert keys == [f"{i:06d}" for i in range(9)]


def test_a_shard_that_is_not_whole_is_written_again(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards, out = write_numbered([2, 1]), tmp_path / "out"
    encode(settings(shards, out))
    whole, untouched = (out / "000.tar").read_bytes(), (out / "001.tar").stat().st_mtime_ns
    changed = whole[:700] + b"?" + whole[701:]
    for tar, report in ((b"", False), (whole, False), (b"", True), (whole[:-512], True), (changed, True)):
        (out / "000.tar").write_bytes(tar)
        if not report:
            (out / "000.json").unlink()
        encode(settings(shards, out))
        assert (out / "000.tar").read_bytes() == whole
    assert (out / "001.tar").stat().st_mtime_ns == untouched


def test_every_sample_is_delivered_or_counted(
    write_shard: WriteShard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [numbered_sample(i) for i in range(6)]
    samples[1] = samples[1] | {"png": b"no image"}
    del samples[2]["txt"]
    samples[5] = samples[5] | {"png": b"no image"}
    encode(settings([write_shard("a.tar", samples)], tmp_path / "out"))
    assert [sample.key for sample in read(tmp_path / "out/a.tar")] == ["000000", "000003", "000004"]
    report = json.loads((tmp_path / "out/a.json").read_text())
    assert report["samples"] == 3
    assert report["skipped"] == {"corrupt_image": 2, "missing_caption": 1}
    assert f"3 samples in 1 shard in {tmp_path / 'out'}; left out: 2 corrupt_image, 1 missing_caption" in (
        capsys.readouterr().out
    )


def test_latents_that_are_not_finite_are_left_out(
    write_numbered: WriteNumbered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(autoencoder: IdentityAutoencoder, images: torch.Tensor) -> torch.Tensor:
        return torch.where(images[:, :1, :1, :1] < -0.995, float("nan"), images)

    monkeypatch.setattr(IdentityAutoencoder, "moments", spoilt)
    encode(settings(write_numbered([3]), tmp_path / "out"))
    assert json.loads((tmp_path / "out/000.json").read_text())["skipped"] == {"non_finite_latent": 1}


def test_a_bad_shard_does_not_end_the_job(
    write_numbered: WriteNumbered, write_shard: WriteShard, tmp_path: Path
) -> None:
    good, out = write_numbered([2, 2]), tmp_path / "out"
    (tmp_path / "empty.tar").write_bytes(b"no tar" * 1000)
    useless = write_shard("useless.tar", [{"__key__": "0", "txt": b"no image"}])
    shards = [str(tmp_path / "empty.tar"), *good, useless]
    with pytest.raises(ValueError, match=r"2 of 4 shards could not be encoded, and the next run tries"):
        encode(settings(shards, out, data__decoder={"_target_": "rfdit.data.decode.SampleDecoder"}))
    assert names(out) == [
        "000.json",
        "000.tar",
        "000.tar.idx",
        "001.json",
        "001.tar",
        "001.tar.idx",
        "latents.json",
    ]


def test_a_shard_without_a_usable_sample_says_why(write_shard: WriteShard, tmp_path: Path) -> None:
    shard = write_shard("a.tar", [{"__key__": "0", "png": b"no image", "txt": b"a", "cls": b"0"}])
    with pytest.raises(ValueError, match=r"no sample of .*a\.tar can be used: 1 corrupt_image"):
        encode(settings([shard], tmp_path / "out"))


def test_shares_cover_every_shard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"{i:03d}" for i in range(23)]
    found = []
    for part in range(3):
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
            share = this_part({"part": part, "parts": 3})
            assert share.count == 6
            assert 3 <= len(share.of(shards)) <= 4
            found += share.of(shards)
    assert sorted(found) == shards
    assert EncodePart(0, 1).of(shards) == shards


def test_parts_meet_in_one_folder(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards = write_numbered([1] * 5)
    for part in (1, 0):
        encode(settings(shards, tmp_path / "out", parts=2, part=part))
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5


def test_shards_of_one_name_are_told_apart(tmp_path: Path) -> None:
    shards = [
        "/a/000.tar",
        "/b/000.tar",
        "/b/001.tar",
        "https://x/y/002.tar?key=/z",
        "t.parquet",
        "pipe:cat a/3.tar",
    ]
    found = shard_names(shards, {})
    assert [place for place in found.values() if place != str(Path("t.parquet").absolute())] == [
        shard for shard in shards if shard != "t.parquet"
    ]
    *twice, one, two, table, pipe = found
    assert all(name.startswith("000-") for name in twice)
    assert (one, two, table, pipe) == ("001", "002", "t", "3")
    assert shard_names(shards[::-1], {}) == dict(reversed(found.items()))


def test_a_shard_called_latents_leaves_the_manifest_alone(write_shard: WriteShard, tmp_path: Path) -> None:
    shards, out = [write_shard("latents.tar", [numbered_sample(0)])], tmp_path / "out"
    encode(settings(shards, out))
    encode(settings(shards, out))
    (name,) = read_manifest(str(out / "latents.json")).shards
    assert name.startswith("latents-")
    assert names(out) == [f"{name}.json", f"{name}.tar", f"{name}.tar.idx", "latents.json"]


def test_shards_that_come_later_leave_the_others_their_names() -> None:
    first = shard_names(["/a/000.tar", "/a/001.tar"], {})
    assert first == {"000": "/a/000.tar", "001": "/a/001.tar"}
    both = shard_names(["/b/000.tar", "/a/000.tar", "/a/001.tar", "/b/002.tar"], first)
    new = next(iter(both))
    assert new.startswith("000-")
    assert both == {new: "/b/000.tar", **first, "002": "/b/002.tar"}
    assert shard_names(list(both.values()), both) == both


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "fp32"}, "dtype=fp32 (the cache has auto)"),
        ({"resolution": [16, 16]}, "data.resolution=[16, 16] (the cache has [8, 8])"),
        ({"autoencoder": IDENTITY | {"name": "x"}}, "autoencoder.name=x (the cache has null)"),
        ({"text_encoder": BPE}, "text_encoder=BPEEncoder (the cache has null)"),
        ({"decoder": {"caption_key": "json.a"}}, "data.decoder.caption_key=json.a (the cache has txt)"),
        (
            {"weights": {"autoencoder": {"sha256": "b" * 64, "place": "autoencoder.source=y"}}},
            "autoencoder.source=y has the weights bbbbbbbbbbbb (the cache has aaaaaaaaaaaa, of autoencoder.source=x)",
        ),
        ({"arithmetic": {"autoencoder": "bf16"}}, "autoencoder.dtype=bf16 (the cache has fp32)"),
        ({"filters": {"min_size": 9}}, "data.filters.min_size=9 (the cache has null)"),
        (
            {"shards": {"0": "elsewhere/0.tar", "1": "1.tar"}},
            "data.shards lacks 1 of the 1 shards of the cache, the first is 0.tar",
        ),
    ],
)
def test_a_folder_of_other_latents_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    manifest = LatentManifest(
        latents=IdentityAutoencoder().contract.as_dict(),
        resolution=[8, 8],
        dtype="auto",
        autoencoder=IDENTITY,
        text_encoder=None,
        weights={"autoencoder": {"sha256": "a" * 64, "place": "autoencoder.source=x"}},
        arithmetic={"autoencoder": "fp32"},
        decoder={"caption_key": "txt"},
        filters={},
        shards={"0": "0.tar"},
        command="",
    )
    update_manifest(manifest, tmp_path)
    update_manifest(manifest, tmp_path)
    with pytest.raises(ValueError, match="holds latents of other settings") as caught:
        update_manifest(dataclasses.replace(manifest, **changes), tmp_path)
    assert str(caught.value) == (
        f"out={tmp_path} holds latents of other settings: {message}; set what the cache has, or give "
        "another out"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "dtype=int8 is unknown; use auto, bf16, fp16, fp32"),
        ({"parts": 2, "part": 2}, "part=2 does not exist for parts=2; use 0 to 1"),
        ({"data__flip": True}, "data.flip=true cannot be cached"),
        ({"text_encoder": BPE}, "text_encoder=BPEEncoder is trained with the model"),
    ],
)
def test_what_cannot_be_cached_is_refused(
    write_numbered: WriteNumbered, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(settings(write_numbered([1]), tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_latents_are_not_encoded_again(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    encode(settings(write_numbered([1]), tmp_path / "out"))
    again = settings([str(tmp_path / "out/000.tar")], tmp_path / "again")
    again["data"]["decoder"] = {
        "_target_": "rfdit.data.latents.decoder.LatentDecoder",
        "_recursive_": False,
        "autoencoder": IDENTITY,
    }
    with pytest.raises(ValueError, match="no images to encode; data=latents is encoded already"):
        encode(again)


def test_text_features_need_captions(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    text = {"_target_": "tests.commands.test_encode.Lengths"}
    decoder = {"_target_": "rfdit.data.decode.SampleDecoder", "caption_key": None}
    with pytest.raises(ValueError, match=r"set data\.decoder\.caption_key, or leave text_encoder out"):
        encode(settings(write_numbered([1]), tmp_path / "out", text_encoder=text, data__decoder=decoder))


class Lengths:
    """A text encoder without weights: the caption's length."""

    width = pooled_width = length = 1

    def __call__(self, captions: Sequence[str], *, device: torch.device) -> Any:
        from rfdit.batch import Condition

        lengths = torch.tensor([[float(len(caption))] for caption in captions], device=device)
        return Condition(pooled=lengths, tokens=lengths[:, None], mask=torch.ones_like(lengths).bool())


def test_text_features_are_those_of_their_sample(write_shard: WriteShard, tmp_path: Path) -> None:
    samples = [numbered_sample(i) | {"txt": b"x" * i} for i in range(1, 6)]
    text = {"_target_": "tests.commands.test_encode.Lengths"}
    encode(settings([write_shard("a.tar", samples)], tmp_path / "out", text_encoder=text))
    found = read(tmp_path / "out/a.tar", text_encoder=text | {"length": 1})
    assert [sample.condition.pooled.item() for sample in found] == [1, 2, 3, 4, 5]


def command(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["encode", *DATA, *overrides])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # the tests' own stay
    rfdit.commands.encode.main()


def test_the_command(
    write_numbered: WriteNumbered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shards = f"data.shards=[{','.join(write_numbered([2, 1]))}]"
    command(monkeypatch, shards, "out=out")
    output = capsys.readouterr().out
    assert "encoding: 1 of 2 shards, 50%  elapsed " in output
    assert "remaining " in output
    assert "3 samples in 2 shards in out" in output
    with pytest.raises(SystemExit, match=r"^error: out is not set; give out=\.\.\.$"):
        command(monkeypatch, shards)
    with pytest.raises(SystemExit, match=r"^error: batchsize is not a setting; did you mean batch_size\?$"):
        command(monkeypatch, shards, "out=out", "batchsize=3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command(monkeypatch, shards, "out=other", "buckets=aspect", "data.buckets.step=4")
    assert read_manifest("other/latents.json").buckets == [[8, 8]]
    with pytest.raises(SystemExit, match=r"^error: out=out holds latents of other settings: dtype=bf16"):
        command(monkeypatch, shards, "out=out", "dtype=bf16")


def test_a_text_encoder_is_an_option() -> None:
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        assert compose("encode").text_encoder is None
        assert compose("encode", overrides=["text_encoder=minilm"]).text_encoder.width == 384


def run(*command: str, cwd: Path, code: int = 0) -> str:
    root = Path(rfdit.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *command, *DATA], cwd=cwd, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_a_launcher_runs_the_parts(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards = f"data.shards=[{','.join(write_numbered([2, 1, 3]))}]"
    parts = ["-m", "hydra/launcher=submitit_local", "parts=2", "part=range(2)"]
    run("-m", "rfdit", "encode", *parts, shards, "out=out", cwd=tmp_path)
    samples = {name: len(read(tmp_path / f"out/{name}.tar")) for name in ("000", "001", "002")}
    assert samples == {"000": 2, "001": 1, "002": 3}
    jobs = sorted(path.read_text() for path in (tmp_path / "out/.submitit").glob("*/*_log.out"))
    assert sum("part 0 of 2: 5 samples in 2 shards" in log for log in jobs) == 1
    assert sum("part 1 of 2: 1 sample in 1 shard in" in log for log in jobs) == 1
    assert read_manifest(str(tmp_path / "out/latents.json")).shards.keys() == samples.keys()


@pytest.mark.slow
def test_torchrun_and_sweeps_share_the_work(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    paths = write_numbered([2, 1, 3])
    shards = f"data.shards=[{','.join(paths)}]"
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "rfdit",
        "encode",
    )
    output = run(*torchrun, shards, "out=two", cwd=tmp_path)
    assert "part 0 of 2: 5 samples in 2 shards" in output
    assert "part 1 of 2: 1 sample in 1 shard in" in output
    output = run("-m", "rfdit", "encode", "-m", "parts=2", "part=0,1", shards, "out=sweep", cwd=tmp_path)
    assert "part 1 of 2: 1 sample in 1 shard in" in output
    for name in ("000.tar", "001.tar", "002.tar"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "sweep" / name).read_bytes()
    two, sweep = (read_manifest(str(tmp_path / out / "latents.json")) for out in ("two", "sweep"))
    assert dataclasses.replace(two, command=sweep.command) == sweep
    # What finishes a cache is one process, whoever began it.
    assert two.command.startswith(f"cd {tmp_path} && rfdit encode 'data.shards=[")
    assert " out=sweep " in sweep.command
    assert "part=" not in sweep.command
    assert "parts=" not in sweep.command
    assert names(tmp_path) == ["000.tar", "001.tar", "002.tar", "sweep", "two"]
    assert names(tmp_path / "sweep") == [*names(tmp_path / "two"), "multirun.yaml"]
    # A process with a bad shard ends last, so that torchrun does not end the others before.
    Path(paths[1]).write_bytes(b"no tar" * 1000)
    error = run(*torchrun, shards, "out=bad", cwd=tmp_path, code=1)
    assert "error: data.shards: 1 of 1 shard could not be encoded" in error
    assert len(list((tmp_path / "bad").glob("*.tar"))) == 2


def test_captions_that_are_cut_off_are_told(
    write_shard: WriteShard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = BPEEncoder(width=8, length=5).requires_grad_(False)
    monkeypatch.setattr(rfdit.commands.encode, "frozen_text_encoder", lambda node: node and encoder)
    captions = ["a cat", "a cat on a wide mat", "a dog"]
    shard = write_shard(
        "a.tar", (numbered_sample(i) | {"txt": c.encode()} for i, c in enumerate(captions * 2))
    )
    encode(settings([shard], tmp_path / "out", text_encoder=BPE))
    assert capsys.readouterr().out.strip().splitlines()[-1] == (
        "33.3% of the first 6 captions are longer than text_encoder.length=5 tokens, and their ends are cut off"
    )
    encode(settings([shard], tmp_path / "out", text_encoder=BPE))  # all is there
    encode(settings([shard], tmp_path / "images"))
    assert "cut off" not in capsys.readouterr().out
