"""Runs with SPRINT: ranks, kills, samples under path-drop guidance, and the last steps with all tokens."""

from pathlib import Path

import pytest

from tests.support.commands.command_line import TWENTY_STEPS, CommandLine, images
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import trained_state

# With a norm of keys, without which their biases have gradients of rounding errors alone.
MODEL = ["model=dit", "model.depth=3", "model.outer_blocks=1", "model.qk_norm=true", "trainer.precision=fp32"]
RUN = [*MODEL, "routing=sprint", "routing.drop=0.3", *TWENTY_STEPS, "schedule.total_steps=20"]


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_two_ranks_and_a_resumed_run_train_what_one_does(tmp_path: Path, cli: CommandLine) -> None:
    """Half under FSDP, half under DDP; then samples of it."""
    single = run(tmp_path / "single", FOUR, *RUN)
    folder = tmp_path / "two"
    run(folder, "strategy=fsdp", *TWO, *RUN, "trainer.max_steps=10")
    run(folder, "strategy=ddp", *TWO, *RUN, "ckpt=last")
    assert curve(folder) == pytest.approx(curve(single), rel=1e-4)
    assert_close(trained_state(folder), trained_state(single))
    for name, guidance in {"pdg": "guidance=path_drop", "cfg": "guidance=cfg"}.items():
        cli.sample(f"ckpt={single}", "prompts=[a red circle]", guidance, f"out={name}")
    assert (images(Path("pdg")) != images(Path("cfg"))).any()
    message = cli.error("export", f"ckpt={single}", "out=folder", "format=diffusers")
    assert message.startswith("format=diffusers cannot express model.outer_blocks=1")
