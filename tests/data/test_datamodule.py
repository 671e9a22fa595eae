"""The data under Lightning: what is counted, what is saved, where a restart continues."""

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from rfdit.batch import Batch
from rfdit.data.datamodule import StreamDataModule

WriteNumbered = Callable[[Sequence[int]], list[str]]
CONF = Path(__file__).parents[2] / "conf"


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


def data(shards: Sequence[str], **settings: object) -> StreamDataModule:
    defaults = {"resolution": 8, "batch_size": 2, "num_workers": 0, "seed": 0, "shuffle_buffer": 4}
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


def saved_state(path: Path) -> dict[str, int]:
    return torch.load(path, weights_only=True)["StreamDataModule"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_the_uninterrupted_one_does(
    write_numbered: WriteNumbered, tmp_path: Path, workers: int
) -> None:
    shards = write_numbered([7, 3, 12, 5])
    whole = fit(data(shards, num_workers=workers), tmp_path / "whole", 9).seen["train"]
    assert [position for position, _ in whole] == list(range(18))
    checkpoint = tmp_path / "whole" / "step=4.ckpt"
    # What the workers have read ahead does not count.
    assert saved_state(checkpoint) == {"batches": 4, "batch_size": 2, "ranks": 1, "workers": max(workers, 1)}
    resumed = fit(data(shards, num_workers=workers), tmp_path / "resumed", 9, ckpt_path=checkpoint)
    assert resumed.seen["train"] == whole[8:]
    assert saved_state(tmp_path / "resumed" / "step=8.ckpt")["batches"] == 8


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


def test_another_layout_continues_at_the_same_place_and_says_so(write_numbered: WriteNumbered) -> None:
    source = data(write_numbered([20]), batch_size=4)
    source.load_state_dict({"batches": 5, "batch_size": 2, "ranks": 3, "workers": 2})
    with pytest.warns(UserWarning, match="3 ranks x 2 workers x batch 2 .* 1 ranks x 1 workers x batch 4"):
        loader = source.train_dataloader()
    # 30 samples were used; the next multiple of 4 is 32.
    assert next(iter(loader)).positions.tolist() == [32, 33, 34, 35]
    assert source.state_dict() == {"batches": 8, "batch_size": 4, "ranks": 1, "workers": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_skips_are_reported_by_reason(
    make_sample: Callable[[int], dict[str, str | bytes]],
    write_shard: Callable[..., str],
    workers: int,
) -> None:
    samples = [make_sample(number) for number in range(8)]
    samples[2]["png"] = b"no image"
    del samples[5]["txt"]
    train, val = write_shard("train.tar", samples), write_shard("val.tar", samples[1:3])
    source = data([train], val_shards=[val], num_workers=workers)
    assert source.skipped() == {}
    batches = iter(source.train_dataloader())
    list(source.val_dataloader())
    for _ in range(16):
        next(batches)
    skipped = source.skipped()
    assert skipped.keys() == {"corrupt_image", "missing_caption", "val_corrupt_image"}
    assert skipped["corrupt_image"] >= 2  # counted again in each epoch
    assert skipped["val_corrupt_image"] == 1


def test_several_ranks_validate_on_equally_many_batches(write_numbered: WriteNumbered) -> None:
    """Their shares of the shards differ; ranks that end at different times would wait for ever."""
    shards = write_numbered([9, 1])
    for rank in range(2):
        source = data(shards, val_shards=shards)
        source.trainer = L.Trainer(limit_val_batches=7, logger=False, accelerator="cpu")
        source._rank_of = lambda rank=rank: (rank, 2)  # type: ignore[method-assign]
        batches = iter(source.val_dataloader())
        assert len([next(batches) for _ in range(7)]) == 7
    source.trainer.limit_val_batches = 1.0
    with pytest.raises(ValueError, match=r"trainer\.limit_val_batches=1 is a share"):
        source.val_dataloader()


def test_no_match_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"data\.shards='nowhere/\*\.tar' matches no file"):
        data("nowhere/*.tar").train_dataloader()
    with pytest.raises(ValueError, match=r"data\.val_shards='nowhere'"):
        data("x", val_shards="nowhere").val_dataloader()


def test_wrong_resolutions_are_named() -> None:
    with pytest.raises(ValueError, match=r"data\.resolution=\[1, 2, 3\]"):
        data("x", resolution=[1, 2, 3])


def composed(*overrides: str) -> StreamDataModule:
    """What `python train.py data=... OVERRIDES` builds as its data."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        name, *rest = overrides
        cfg = compose(overrides=[f"+data={name}", "+seed=3", *rest])
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
