"""Numbers that callbacks log are what their names say."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from rfdit.callbacks.throughput import peak_memory
from rfdit.cost.count import matmul_peak
from rfdit.device import pick_precision
from tests.support.commands.command_line import CommandLine, metrics


def test_the_last_step_is_logged_and_time_bins_average_to_the_loss(cli: CommandLine) -> None:
    cli.train(
        "run_dir=run",
        "trainer.max_steps=4",
        "trainer.log_every_n_steps=50",
        "data.batch_size=64",
        "time=uniform",
    )
    (row,) = metrics(Path("run"))
    assert row["step"] == "3"
    assert row["lr-AdamW"]
    bins = [float(row[f"train/loss_t{i / 10:.1f}"]) for i in range(10)]
    # About as many samples in each bin, and hardly any learning in four steps.
    assert sum(bins) / 10 == pytest.approx(float(row["train/loss"]), rel=0.05)


def test_throughput(cli: CommandLine) -> None:
    cli.train(
        "run_dir=run", "trainer.max_steps=6", "trainer.log_every_n_steps=4",
        "callbacks.throughput={_target_: rfdit.callbacks.Throughput, every_n_steps: 4}",
    )  # fmt: skip
    rows = metrics(Path("run"))
    assert [row["step"] for row in rows] == ["3", "5"]
    for row in rows:
        assert float(row["speed/images_per_second"]) > 0
        assert 0 < float(row["speed/mfu"]) < 1
        assert 0 <= float(row["speed/data_wait"]) < 1
        tokens = float(row["speed/tokens_per_second"]) / float(row["speed/images_per_second"])
        assert tokens == pytest.approx(64)  # 32 pixels, patches of 4
        assert 0.1 < float(row["speed/peak_memory_gb"]) < 64


@pytest.mark.slow
def test_peak_memory_sees_what_was_taken() -> None:
    before = peak_memory(torch.device("cpu"))
    torch.ones(before // 4)  # as much again, in float32
    assert peak_memory(torch.device("cpu")) > 1.5 * before


@pytest.mark.parametrize(("steps", "written"), [(6, 2), (3, 1)])
def test_trace(cli: CommandLine, steps: int, written: int) -> None:
    """The trace has the two steps after the first two, or those of them that were taken."""
    cli.train(
        "run_dir=run", f"trainer.max_steps={steps}", "profiler=torch", "callbacks.trace.first_step=2",
        "callbacks.trace.steps=2",
    )  # fmt: skip
    file = Path("run/trace/trace_rank0.json")
    names = [event.get("name", "") for event in json.loads(file.read_text())["traceEvents"]]
    assert sum(name.startswith("Optimizer.step#") for name in names) == written


@pytest.mark.slow
def test_a_trace_of_steps_that_the_run_does_not_come_to(cli: CommandLine) -> None:
    """A new run is refused, but a run that is resumed near its end goes on."""
    trace = ["profiler=torch", "callbacks.trace.first_step=3"]
    refused = "callbacks.trace.first_step=3 is never reached in the 3 steps up to trainer.max_steps"
    assert cli.error("train", "run_dir=run", *trace).startswith(refused)
    assert not Path("run/config.yaml").exists()
    cli.train("run_dir=run")
    resumed = ["run_dir=run", "ckpt=last", "trainer.max_steps=6", *trace]
    cli.train(*resumed)
    assert not Path("run/trace").exists()


def test_peak_is_the_rate_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product takes 2 n^3 operations; a mocked clock gives the time of each, and the first one warms up."""
    seconds = [8.0, 4.0, 2.0, 4.0]
    readings = iter([reading for taken in seconds for reading in (100.0, 100.0 + taken)])
    monkeypatch.setattr("rfdit.cost.count.time.perf_counter", lambda: next(readings))
    rate = matmul_peak(torch.device("cpu"), torch.float32, size=16, repeats=3)
    assert rate == 2 * 16**3 / 2.0
    assert next(readings, None) is None


def test_a_device_that_is_slow_in_a_type_is_measured_with_small_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A side of 1536 would take 216 times 0.1 seconds a product."""
    readings = itertools.count(0.0, 0.1)
    monkeypatch.setattr("rfdit.cost.count.time.perf_counter", lambda: next(readings))
    assert matmul_peak(torch.device("cpu"), torch.float32, repeats=2) == pytest.approx(2 * 256**3 / 0.1)


def test_precision_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, name in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr("rfdit.device.multiplies_bf16_fast", lambda device, fast=fast: fast)
        assert pick_precision("auto", torch.device("cpu")) == name


def test_captions_that_are_cut_off_are_told_in_training_and_sampling(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.train("run_dir=run", "text_encoder.length=4", "trainer.max_steps=1", "data.batch_size=8")
    told = "100.0% of the first 8 captions are longer than text_encoder.length=4 tokens"
    assert told in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r'these ends are cut off: "\.\.\. circle on a hill"$'):
        cli.sample("ckpt=run", "prompts=[a red circle on a hill]", "sampler.steps=1", "out=out")


def test_skipped_samples_are_logged_and_told(
    cli: CommandLine, emoji_shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray(emoji_shard.read_bytes())
    start = damaged.find(b"\xff\xd8\xff")
    damaged[start : start + 400] = bytes(400)  # the first JPEG's header
    Path("damaged.tar").write_bytes(damaged)
    cli.train(
        "run_dir=run", "data=laion", "data.shards=damaged.tar", "data.resolution=32", "data.batch_size=16",
        "trainer.max_steps=4",
    )  # fmt: skip
    assert float(metrics(Path("run"))[-1]["data/skipped_corrupt_image"]) >= 1
    assert "corrupt_image" in capsys.readouterr().out
