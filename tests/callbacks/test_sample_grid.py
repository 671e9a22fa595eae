"""The captions below the images of a grid."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.batch import Batch
from rfdit.callbacks import SampleGrid
from rfdit.callbacks.sample_grid import captions_of
from rfdit.conditioning import LabelConditioner
from rfdit.image_grid import captioned_grid
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.objective import IndependentCoupling, UniformTime, VelocityMatching
from rfdit.sampler import Euler, NoGuidance, Sampler
from rfdit.training.module import FlowModule
from rfdit.training.optim import AdamW, ConstantSchedule

NAMES = ["tench", "goldfish", "golden retriever"]


def labelled(*labels: int, named: bool = True) -> Batch:
    return Batch(
        images=torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8),
        positions=torch.arange(len(labels)),
        labels=torch.tensor(labels),
        captions=[NAMES[label] for label in labels] if named else None,
    )


def sample_grid(folder: Path, **settings: object) -> SampleGrid:
    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=1)
    return SampleGrid(folder=str(folder), sampler=sampler, every_n_steps=1, **settings)


def fit(grid: SampleGrid, batch: Batch) -> None:
    """One training step on the batch."""
    backbone = DiT(width=8, depth=1, num_heads=1, patch_size=2, in_channels=3, input_size=4)
    module = FlowModule(
        network=Network(backbone=backbone, conditioner=LabelConditioner(num_classes=3, width=8)),
        autoencoder=IdentityAutoencoder(),
        objective=VelocityMatching(time=UniformTime(), coupling=IndependentCoupling()),
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, schedule=ConstantSchedule()),
        seed=0,
        record={},
    )
    L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[grid],
    ).fit(module, DataLoader([batch], batch_size=None))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The captions of each grid that is made."""
    sheets: list[list[str]] = []

    def noted(images: torch.Tensor, captions: list[str]) -> object:
        sheets.append(list(captions))
        return captioned_grid(images, captions)

    monkeypatch.setattr("rfdit.callbacks.sample_grid.captioned_grid", noted)
    return sheets


def test_labels_are_shown_with_their_names(tmp_path: Path, written: list[list[str]]) -> None:
    grid = sample_grid(tmp_path, count=2)
    fit(grid, labelled(2, 0, 1))
    assert written == [["2: golden retriever", "0: tench"]]
    assert (tmp_path / "step_00000001.png").is_file()
    # A resumed run shows the same, whatever its first batch holds.
    resumed = sample_grid(tmp_path, count=2)
    resumed.load_state_dict(grid.state_dict())
    fit(resumed, labelled(1, 1, named=False))
    assert written[1] == written[0]


def test_labels_without_names_are_numbers(tmp_path: Path, written: list[list[str]]) -> None:
    fit(sample_grid(tmp_path), labelled(2, 0, named=False))
    assert written == [["2", "0"]]


def test_labels_that_were_asked_for_take_the_names_that_the_batch_has(
    tmp_path: Path, written: list[list[str]]
) -> None:
    grid = sample_grid(tmp_path, inputs=[1, 2])
    # A checkpoint's labels were others: so were their names.
    grid.load_state_dict({"inputs": [0, 1], "captions": ["0: tench", "1: goldfish"]})
    fit(grid, labelled(2, 0))
    assert written == [["1", "2: golden retriever"]]


def test_captions_stay_as_they_are() -> None:
    assert captions_of(["a red circle", "7"], labelled(0, 1)) == ["a red circle", "7"]
