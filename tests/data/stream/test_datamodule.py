"""The data under Lightning: counts, saved state, and the point at which a restart continues."""

import io
import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn

from rfdit.batch import Batch
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.stream.buckets import AspectBuckets
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.tar.source import TarReader
from rfdit.processes.rank import Process
from tests.support.commands.processes import alive
from tests.support.waiting import wait_until

WriteNumbered = Callable[[Sequence[int]], list[str]]
CONF = Path(__file__).parents[3] / "conf"


class Recorder(L.LightningModule):
    """Remembers which positions and samples it was given, by training and by validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[tuple[int, str]]] = {"train": [], "val": []}

    def _record(self, batch: Batch, stage: str) -> Tensor:
        assert batch.keys is not None
        self.seen[stage] += zip(batch.positions.tolist(), batch.keys, strict=True)
        return self.weight.sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._record(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._record(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def data(shards: Sequence[str], **settings: object) -> StreamDataModule:
    defaults = {
        "reader": TarReader(),
        "decoder": SampleDecoder(),
        "filters": Filters(),
        "resolution": 8,
        "batch_size": 2,
        "num_workers": 0,
        "seed": 0,
    }
    return StreamDataModule(shards=shards, **defaults | settings)


def fit(source: StreamDataModule, folder: Path, steps: int, **settings: object) -> Recorder:
    """Trains, and saves every two steps under `folder`."""
    saving = L.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[saving],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"num_sanity_val_steps": 0} | settings.pop("trainer", {}),
    )
    module = Recorder()
    trainer.fit(module, datamodule=source, weights_only=True, **settings)
    return module


def saved_state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["StreamDataModule"]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 3), (0, 2)])
def test_a_resumed_run_sees_what_the_uninterrupted_one_does(
    write_numbered: WriteNumbered, tmp_path: Path, before: int, after: int
) -> None:
    shards = write_numbered([7, 3, 12, 5])
    whole = fit(data(shards, num_workers=before), tmp_path / "whole", 9).seen["train"]
    assert [position for position, _ in whole] == list(range(18))
    checkpoint = tmp_path / "whole" / "step=4.ckpt"
    # What the workers have read ahead does not count.
    state = saved_state(checkpoint)
    assert (state["origin"], state["batch"], state["batches"]) == ([0], 2, 4)
    resumed = fit(data(shards, num_workers=after), tmp_path / "resumed", 9, ckpt_path=checkpoint)
    assert resumed.seen["train"] == whole[8:]
    assert saved_state(tmp_path / "resumed" / "step=8.ckpt")["batches"] == 8


def test_buckets_resume_exactly(write_shard: Callable[..., str], tmp_path: Path) -> None:
    shapes = [(8, 8), (8, 16), (16, 8)]
    samples = []
    for number in range(21):
        encoded = io.BytesIO()
        Image.new("RGB", shapes[number % 3][::-1], (number, 0, 0)).save(encoded, "png")
        samples.append({"__key__": f"{number:06d}", "png": encoded.getvalue(), "txt": b"a"})
    shards = [write_shard("a.tar", samples[:9]), write_shard("b.tar", samples[9:])]

    def bucketed_data(batch_size: int = 2) -> StreamDataModule:
        buckets = AspectBuckets(resolution=12, step=4, max_aspect=2.0)
        return data(shards, buckets=buckets, resolution=12, batch_size=batch_size)

    batches = list(itertools.islice(bucketed_data().train_dataloader(), 30))
    assert {tuple(batch.images.shape[2:]) for batch in batches} == {(12, 12), (8, 16), (16, 8)}
    for batch in batches:  # each sample has its own image's shape
        assert {shapes[int(key) % 3][::-1] for key in batch.keys} in ({(8, 8)}, {(8, 16)}, {(16, 8)})
    whole = fit(bucketed_data(), tmp_path / "whole", 9).seen["train"]
    checkpoint = tmp_path / "whole" / "step=4.ckpt"
    assert fit(bucketed_data(), tmp_path / "same", 9, ckpt_path=checkpoint).seen["train"] == whole[8:]
    other = fit(bucketed_data(3), tmp_path / "other", 8, ckpt_path=checkpoint).seen["train"]
    assert [position for position, _ in other] == list(range(8, 20))
    # The first epoch of every bucket is completed before a sample of it comes again.
    order = [key for _, key in whole[:8] + other]
    for shape in range(3):
        mine = [key for key in order if int(key) % 3 == shape][:7]
        assert len(set(mine)) == len(mine)


def test_validation_is_one_pass_in_order_and_does_not_count(
    write_numbered: WriteNumbered, tmp_path: Path
) -> None:
    shards = write_numbered([7, 5])
    source = data(shards[:1], val_shards=shards[1:])
    settings = {"val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 2}
    module = fit(source, tmp_path, 6, trainer=settings)
    one_pass = [(n, f"{7 + n:06d}") for n in range(5)]
    assert module.seen["val"] == one_pass[:4] + one_pass + one_pass  # the sanity check's two batches first
    assert saved_state(tmp_path / "step=6.ckpt")["batches"] == 6


def test_without_validation_shards_there_is_no_validation(
    write_numbered: WriteNumbered, tmp_path: Path
) -> None:
    module = fit(data(write_numbered([4])), tmp_path, 2, trainer={"limit_val_batches": 3})
    assert module.seen["val"] == []


def test_another_layout_continues_at_the_very_sample(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards = write_numbered([13, 20])
    whole = fit(data(shards), tmp_path / "whole", 20).seen["train"]
    state = saved_state(tmp_path / "whole" / "step=4.ckpt")
    source = data(shards, batch_size=5)
    source.load_state_dict(state)
    first = next(iter(source.train_dataloader()))
    assert list(zip(first.positions.tolist(), first.keys, strict=True)) == whole[8:13]
    assert source.state_dict() == {"origin": [8], "batch": 5, "batches": 0, "about": state["about"]}


def test_other_data_than_the_checkpoints_warns(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    fit(data(write_numbered([13, 20])), tmp_path / "whole", 4)
    source = data(write_numbered([13, 21]))
    source.load_state_dict(saved_state(tmp_path / "whole" / "step=4.ckpt"))
    with pytest.warns(UserWarning, match=r"another stream: 33 samples, seed 0, and here 34, seed 0"):
        loader = source.train_dataloader()
    assert next(iter(loader)).positions.tolist() == [8, 9]


@pytest.mark.parametrize("change", ["shards", "order", "shuffle_shards", "seed", "filters"])
def test_what_changes_the_order_is_told(write_numbered: WriteNumbered, tmp_path: Path, change: str) -> None:
    shards = write_numbered([10, 10, 10])
    fit(data(shards, shuffle_shards=2), tmp_path / "whole", 4)
    changed = {
        "shards": ([shards[0], shards[1], str(shutil.copy(shards[2], tmp_path / "new.tar"))], {}),
        "order": (shards[::-1], {}),
        "shuffle_shards": (shards, {"shuffle_shards": 3}),
        "seed": (shards, {"seed": 1}),
        "filters": (shards, {"filters": Filters(max_caption=8)}),
    }
    given, settings = changed[change]
    source = data(given, **{"shuffle_shards": 2} | settings)
    source.load_state_dict(saved_state(tmp_path / "whole" / "step=4.ckpt"))
    with pytest.warns(UserWarning, match=r"checkpoint belongs to another stream"):
        source.train_dataloader()


def test_ranks_that_see_other_data_are_told(
    write_numbered: WriteNumbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(seen: list[dict[str, Any]], mine: dict[str, Any]) -> None:
        seen[:] = [mine, mine | {"samples": 7}]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.all_gather_object", gathered)
    shards = write_numbered([10])
    for loader in ("train_dataloader", "val_dataloader"):
        with pytest.raises(ValueError, match=r"^data\.shards: rank 1 finds 7 samples and rank 0 10"):
            getattr(data(shards, val_shards=shards), loader)()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal for orphans is Linux's")
@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_process(write_numbered: WriteNumbered) -> None:
    (shard,) = write_numbered([9])
    program = f"""
import time
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.tar.source import TarReader
data = StreamDataModule(shards="{shard}", reader=TarReader(), decoder=SampleDecoder(), filters=Filters(),
                        resolution=8, batch_size=2, num_workers=2, seed=0)
batches = iter(data.train_dataloader())
next(batches)
print(*[worker.pid for worker in batches._workers], flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, workers)))


def test_buckets_without_effect_warn(write_numbered: WriteNumbered) -> None:
    shards = write_numbered([10])
    source = data(shards, buckets=AspectBuckets(resolution=8, step=8), resolution=8)
    with pytest.warns(UserWarning, match=r"^data\.buckets has no effect"):
        source.train_dataloader()


def test_shards_named_twice_are_read_once(write_numbered: WriteNumbered, tmp_path: Path) -> None:
    shards = write_numbered([3, 4])
    with pytest.warns(UserWarning, match=r"data\.shards names 1 shard twice"):
        loader = data([shards[0], str(tmp_path / "*.tar")], batch_size=7).train_dataloader()
    assert sorted(map(int, next(iter(loader)).keys)) == list(range(7))


def test_filters_are_exact_and_counted(
    make_sample: Callable[[int], dict[str, str | bytes]], write_shard: Callable[..., str]
) -> None:
    samples = [
        make_sample(number) | {"json": json.dumps({"pwatermark": number / 10, "width": 8}).encode()}
        for number in range(10)
    ]
    del samples[3]["json"]
    shard = write_shard("a.tar", samples)
    source = data([shard], filters=Filters(max_watermark=0.55, min_size=8), batch_size=5)
    batches = itertools.islice(source.train_dataloader(), 3)
    assert [sorted(map(int, batch.keys)) for batch in batches] == [[0, 1, 2, 4, 5]] * 3
    assert source.skipped() == {"filtered_watermark": 4, "unknown_watermark": 1}
    with pytest.raises(ValueError, match=r"data\.shards: no sample of 1 shard.* 10 filtered_size"):
        data([shard], filters=Filters(min_size=9)).train_dataloader()


def skipped(batches: Iterable[Batch]) -> Counter[str]:
    return sum((Counter(batch.skipped) for batch in batches), Counter())


@pytest.mark.parametrize("workers", [0, 2])
def test_skips_are_counted_in_the_batches_that_are_used(
    make_sample: Callable[[int], dict[str, str | bytes]],
    write_shard: Callable[..., str],
    workers: int,
) -> None:
    samples = [make_sample(number) for number in range(8)]
    samples[2]["png"] = b"no image"
    del samples[5]["txt"]
    train, val = write_shard("train.tar", samples), write_shard("val.tar", samples[1:3])
    source = data([train], val_shards=[val], num_workers=workers)
    trained = list(itertools.islice(source.train_dataloader(), 2 * len(samples)))
    # In each epoch again, without what workers have read ahead.
    epochs = sum(map(len, trained)) // len(samples)
    assert skipped(trained) == {"corrupt_image": epochs, "missing_caption": epochs}
    assert skipped(source.val_dataloader()) == {"corrupt_image": 1}


def test_several_ranks_validate_on_every_sample_once(write_numbered: WriteNumbered) -> None:
    shards = write_numbered([9, 2])
    seen = []
    for rank in range(2):
        source = data(shards, val_shards=shards)
        source._process = lambda rank=rank: Process(rank, 2)  # type: ignore[method-assign]
        batches = list(source.val_dataloader())
        assert len(batches) == 3
        seen += [int(key) for batch in batches for key in batch.keys]
    assert sorted(seen) == list(range(11))


def test_no_match_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"data\.shards='nowhere/\*\.tar' matches no file"):
        data("nowhere/*.tar").train_dataloader()
    with pytest.raises(ValueError, match=r"data\.val_shards='nowhere'"):
        data("x", val_shards="nowhere").val_dataloader()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": [1, 2, 3]}, r"data\.resolution=\[1, 2, 3\]"),
        ({"resolution": 0}, r"data\.resolution=0 must be one side, or"),
        ({"batch_size": 0}, r"data\.batch_size=0 must be at least 1"),
        ({"num_workers": -1}, r"data\.num_workers=-1 must be at least 0"),
        ({"shuffle_shards": 0}, r"data\.shuffle_shards=0 must be at least 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data("x", **settings)


def composed(*overrides: str) -> StreamDataModule:
    """The data that `python train.py data=... OVERRIDES` builds."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        name, *rest = overrides
        cfg = compose(overrides=[f"+data={name}", "+filters=default", "+buckets=none", "+seed=3", *rest])
    return instantiate(cfg.data, _convert_="all")


def test_the_shapes_are_the_default(tmp_path: Path) -> None:
    source = composed(
        "shapes", f"data.shards.cache={tmp_path}", "data.shards.samples=64", "data.num_workers=1"
    )
    source.prepare_data()
    batch = next(iter(source.train_dataloader()))
    assert batch.images.shape == (32, 3, 32, 32)
    (validation, *_) = source.val_dataloader()
    assert len(validation) == 32
    assert source.seed == 3


def test_laion_reads_real_shards(assets: Path) -> None:
    pattern = str(assets / "data/emoji") + "/emoji-{0000..0007}.tar"
    source = composed("laion", f"data.shards='{pattern}'", "data.resolution=[64,96]", "data.batch_size=4")
    batch = next(iter(source.train_dataloader()))
    assert batch.images.shape == (4, 3, 64, 96)
    assert source.val_dataloader() == []
