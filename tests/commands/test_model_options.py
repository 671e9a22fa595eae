"""Models with other blocks than the default's train, are saved, and are loaded again."""

import pytest

import rfdit
from tests.support.commands.command_line import CommandLine


@pytest.mark.parametrize(
    "model",
    [
        ["model=mmdit", "model.mlp=swiglu", "model.norm=rms", "model.positions=sincos+rope", "model.adaln=single"],
        ["model=lightningdit", "model.qk_norm=layer", "model.shifts=false", "optimizer=adamw_mup"],
        ["model=dit_cross_attention", "compile=true"],
    ],
)  # fmt: skip
@pytest.mark.slow
def test_they_train_and_are_loaded(cli: CommandLine, model: list[str]) -> None:
    extra = ["optimizer.base_width=64"] if "optimizer=adamw_mup" in model else []
    cli.train("run_dir=run", *model, *extra, "trainer.max_steps=2")
    loaded = rfdit.load("run", accelerator="cpu")
    (image,) = loaded("a red circle", steps=2)
    assert image.size == (32, 32)
