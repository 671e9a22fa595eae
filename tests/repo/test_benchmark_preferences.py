"""Pairs of shapes: the better image wins, and a prompt whose images are all right has no pair."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from rfdit.data.filters import Filters
from rfdit.data.preferences.decoder import PreferenceDecoder
from rfdit.data.shapes.scenes import is_held_out, parse, render
from rfdit.data.tar.source import TarReader
from rfdit.data.tar.write import write_tar
from tests.support.commands.benchmarks import benchmark

SHOWN = {
    "a small red circle": ["a large blue star", "a small red square", "a small red circle"],
    "a small blue star": ["a small blue star"] * 3,
}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("preference_pairs", monkeypatch)


def pipeline(prompts: list[str], *, seed: int, first_key: int) -> Tensor:
    return torch.stack(
        [torch.from_numpy(render(parse(scene)).transpose(2, 0, 1)) for scene in SHOWN[prompts[0]]]
    )


def test_the_better_image_wins(program: ModuleType, tmp_path: Path) -> None:
    found: list[Tensor] = []
    made = program.pairs(pipeline, list(SHOWN), images=3, seed=0, found=found)
    assert write_tar(tmp_path / "0.tar", made) == 1
    assert found[0].tolist() == [0, 0.5, 1]
    assert found[1].tolist() == [1, 1, 1]
    source = TarReader(cache=str(tmp_path / "cache"))([str(tmp_path / "0.tar")], filters=Filters())
    (raw,) = source.samples([0])
    assert not isinstance(raw, Exception)
    pair = PreferenceDecoder()(raw, (32, 32))
    assert pair.caption == "a small red circle"
    for image, scene in ((pair.image, "a small red circle"), (pair.rejected, "a large blue star")):
        assert image is not None
        assert np.array_equal(image.numpy(), render(parse(scene)).transpose(2, 0, 1))


def test_prompts_are_not_those_that_are_measured(program: ModuleType) -> None:
    prompts = program.drawn_prompts(50, seed=1)
    assert prompts == program.drawn_prompts(50, seed=1)
    assert not any(is_held_out(parse(prompt)) for prompt in prompts)
