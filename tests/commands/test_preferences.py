"""Runs of preference tuning: what is logged and left, kills, ranks, compiled blocks, and what does not go together."""

import io
import math
import random
from pathlib import Path

import pytest
from PIL import Image

import rfdit.commands.encode
from rfdit.cost.plan import images_per_sample
from rfdit.data.shapes.scenes import draw, render
from tests.support.commands.command_line import FEW_SHAPES, TWENTY_STEPS, CommandLine, metrics
from tests.support.commands.composing import composed
from tests.support.commands.processes import SETTINGS
from tests.support.data.shards import write_tar
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, trained_state


def png(seed: int) -> bytes:
    scene, offsets = draw(random.Random(seed))
    file = io.BytesIO()
    Image.fromarray(render(scene, offsets)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A shard of pairs of shapes, of which the preferred one is that of the caption, and of one half of a pair."""
    samples = [
        {
            "__key__": f"{i:02d}",
            "win.png": png(i),
            "lose.png": png(i + 1),
            "txt": draw(random.Random(i))[0].caption.encode(),
        }
        for i in range(16)
    ]
    half = {"__key__": "16", "win.png": png(0), "txt": b"a small red circle"}
    return write_tar(tmp_path_factory.mktemp("pairs") / "0.tar", [*samples, half])


def tuned(ckpt: Path | str, pairs: str) -> list[str]:
    """Settings of a run of the preset."""
    small = ["adapter.r=2", "data.resolution=32", "trainer.precision=fp32"]
    return ["experiment=dpo", f"init.ckpt={ckpt}", f"data.shards={pairs}", *small]


@pytest.mark.slow
def test_it_prefers_what_it_is_shown(cli: CommandLine, pairs: str) -> None:
    cli.train("run_dir=base", *TWENTY_STEPS)
    settings = [*tuned("base", pairs), "data.batch_size=17", "trainer.max_steps=12", "optimizer.lr=1e-2"]
    cli.train("run_dir=run", *settings)
    first, *_, last = metrics(Path("run"))
    assert float(first["train/loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(first["train/accuracy"]) == 0.5
    assert float(first["train/margin"]) == 0
    assert float(last["train/loss"]) < math.log(2) - 0.01
    assert float(last["train/accuracy"]) > 0.5
    difference = float(last["train/preferred"]) - float(last["train/rejected"])
    assert float(last["train/margin"]) == pytest.approx(-2000 / 2 * difference, rel=1e-2)
    assert float(last["data/skipped_incomplete_pair"]) == 12  # one in each epoch
    cli.sample("ckpt=run", "prompts=[a red circle]", "out=images")
    assert list(Path("images").glob("0*.png"))


def test_a_network_without_adapters_is_refused(cli: CommandLine) -> None:
    assert cli.error("train", "run_dir=run", "objective=dpo").startswith(
        "objective compares the network with itself without its adapters, and adapter=none has none; give adapter=lora"
    )


@pytest.mark.slow
def test_data_of_the_other_kind_is_refused(
    cli: CommandLine, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.train("run_dir=base", "trainer.max_steps=1")
    start = ["init=weights", "init.ckpt=base", "adapter=lora"]
    assert cli.error("train", "run_dir=run", "objective=dpo", *start) == (
        "objective=DiffusionDPO compares the two images of a pair, and the data has single ones; use data=preferences "
        "data.shards=..."
    )
    data = ["data=preferences", f"data.shards={pairs}", "data.resolution=32"]
    assert cli.error("train", "run_dir=run", *data) == (
        "data has pairs of images, and objective=VelocityMatching trains on single ones; use objective=dpo, or "
        "data.decoder.rejected=null to train on the preferred images alone"
    )
    cli.train("run_dir=alone", *data, "data.decoder.rejected=null", "trainer.max_steps=1")
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # the tests' own stay
    monkeypatch.setattr(
        "sys.argv", ["encode", *data, "out=latents", "accelerator=cpu", "autoencoder=identity"]
    )
    with pytest.raises(
        SystemExit, match="data=preferences has pairs of images, and latents are cached of single"
    ):
        rfdit.commands.encode.main()


def test_a_plan_has_room_for_both_images() -> None:
    assert images_per_sample(composed("train", "objective=dpo")) == 2
    assert images_per_sample(composed("train")) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_ranks_kills_and_recomputing_change_nothing(pairs: str, tmp_path: Path) -> None:
    base = run(tmp_path / "base", FOUR, *TWENTY_STEPS)
    quick = [
        "objective.beta=50",
        "optimizer.lr=1e-2",
        "trainer.max_steps=6",
        "callbacks.checkpoints.every_n_steps=3",
    ]
    same = [*tuned(base, pairs), *quick]
    plain = [setting for setting in SETTINGS if setting != FEW_SHAPES]
    single = run(tmp_path / "single", FOUR, *same, settings=plain)
    sharded = ["strategy=fsdp", "strategy.meta_init=true", "model.recompute=full", *TWO]
    spread = {"ddp": ["strategy=ddp", *TWO], "fsdp": sharded}
    for name, strategy in spread.items():
        folder = run(tmp_path / name, *same, *strategy, settings=plain)
        assert curve(folder) == pytest.approx(curve(single), rel=1e-4)
        assert_close(trained_state(folder), trained_state(single))
    run(tmp_path / "part", *same, *sharded, "trainer.max_steps=3", settings=plain)
    run(tmp_path / "part", *same, *sharded, "ckpt=last", settings=plain)
    assert_equal(trained_state(tmp_path / "part"), trained_state(tmp_path / "fsdp"))


@pytest.mark.slow
def test_compiled_and_routed_blocks_are_compared_too(cli: CommandLine, pairs: str) -> None:
    small = "model.depth=1"  # each kind of block is compiled twice, with and without gradients
    cli.train("run_dir=base", *TWENTY_STEPS, small)
    settings = [*tuned("base", pairs), small, "objective.beta=50", "optimizer.lr=1e-2", "trainer.max_steps=2"]
    routed = ["routing=tread", "routing.first=1", "routing.last=1"]
    cli.train("run_dir=plain", *settings)
    cli.train("run_dir=compiled", *settings, "compile=true")
    cli.train("run_dir=routed", *settings, *routed)
    plain, compiled, passed = (metrics(Path(name)) for name in ("plain", "compiled", "routed"))
    for one, two in zip(plain, compiled, strict=True):
        assert float(one["train/loss"]) == pytest.approx(float(two["train/loss"]), rel=1e-3)
    assert float(passed[0]["train/loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert passed[-1]["train/loss"] != plain[-1]["train/loss"]
