"""Reflow and its distillation from the command line: recorded pairs, and runs on them, killed and on two ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.sample import Sample
from rfdit.images import to_uint8
from tests.support.commands.command_line import FEW_SHAPES, TWENTY_STEPS, CommandLine, images, metrics
from tests.support.commands.processes import SETTINGS, finish, start_sampling
from tests.support.data.latent_shards import IDENTITY
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, resumed_state, trained_state

ON_PAIRS = [setting for setting in SETTINGS if setting != FEW_SHAPES]
REQUEST = ["prompts=[a red circle,a blue star]", "sampler.steps=4", "batch_size=4", "count=6"]
RECORD = [*REQUEST, "output=latents", "output.pairs_per_shard=5"]


def read(folder: Path) -> list[Sample]:
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    decode = LatentDecoder(autoencoder=IDENTITY)
    raws = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    return [decode(raw, (32, 32)) for raw in raws]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files that do not say how and when they were made."""
    return {path.name: path.read_bytes() for path in folder.glob("0*")}


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_a_record_has_the_latents_of_the_images(cli: CommandLine, tmp_path: Path) -> None:
    """And their noise; it is continued, and the same for any number of processes."""
    cli.train("run_dir=start", *TWENTY_STEPS, "trainer.precision=fp32")
    request = ["ckpt=start", *RECORD, "first_key=5", "seed=3"]
    assert "12 pairs in 3 shards in pairs; 4 evaluations" in cli.sample(*request, "out=pairs")
    pairs = read(Path("pairs"))
    assert [pair.noise for pair in pairs] == [(3, key) for key in range(5, 17)]
    assert pairs[6].caption == "a blue star"
    cli.sample("ckpt=start", *REQUEST, "first_key=5", "seed=3", "out=images")
    moments = torch.stack([pair.moments for pair in pairs if pair.moments is not None])
    decoded = to_uint8(moments.clamp(-1, 1)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(decoded, images(Path("images")))

    whole = contents(Path("pairs"))
    Path("pairs/00001.tar").write_bytes(b"damaged")
    cli.sample(*request, "out=pairs")
    assert contents(Path("pairs")) == whole
    finish(start_sampling(*request, "devices=2", "out=two", cwd=tmp_path))
    assert contents(Path("two")) == whole

    assert cli.error("sample", *request, "out=pairs", "seed=4").startswith(
        "out=pairs holds images of other settings: config.seed=3 (now 4)"
    )
    for wrong, sentence in (
        (["scales=[1,3]", "count=1"], "scales=[1.0, 3.0] makes several latents of one noise"),
        (["sampler=sde"], "sampler.solver=EulerMaruyama draws noise in every step"),
        (["use=trajectory"], "output=latents records what noise becomes"),
        (["output.dtype=int8"], "output.dtype=int8 is unknown; use auto"),
    ):
        assert cli.error("sample", *request, *wrong).startswith(sentence)

    train = ["data=latents", "data.shards=pairs", "coupling=recorded"]
    assert cli.error("train", *train, "data.resolution=64").startswith(
        "the latents of pairs/latents.json do not fit this run: data.resolution=[64, 64] (the cache has [32, 32]"
    )
    Path("pairs/latents.json").unlink()
    assert cli.error("train", *train, "data.resolution=32").startswith(
        "data.shards: pairs/latents.json does not exist; cached latents are shards and a latents.json"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_the_whole_sequence(cli: CommandLine, tmp_path: Path) -> None:
    """Train, record, reflow, record, distil; a run that is resumed or on two ranks is the run."""
    start = run(tmp_path / "start", FOUR, *TWENTY_STEPS)
    cli.sample(f"ckpt={start}", *RECORD, "out=pairs")
    on_pairs = [
        "data.resolution=32", f"data.shards={tmp_path}/pairs", f"data.val_shards={tmp_path}/pairs",
        "trainer.max_steps=4", "trainer.val_every_n_steps=4",
    ]  # fmt: skip
    reflow = ["experiment=reflow", f"init.ckpt={start}", "callbacks.straightness.steps=3", *on_pairs]
    single = run(tmp_path / "single", *reflow, FOUR, settings=ON_PAIRS)
    values = [float(row["val/straightness"]) for row in metrics(single) if row["val/straightness"]]
    assert len(values) == 1
    assert values[0] > 0
    independent = run(tmp_path / "other", *reflow, "coupling=independent", FOUR, settings=ON_PAIRS)
    assert curve(independent) != pytest.approx(curve(single), rel=1e-2)

    run(tmp_path / "parts", *reflow, "trainer.max_steps=2", "schedule.total_steps=4", FOUR, settings=ON_PAIRS)
    run(tmp_path / "parts", *reflow, "ckpt=last", "schedule.total_steps=4", FOUR, settings=ON_PAIRS)
    assert_equal(resumed_state(single), resumed_state(tmp_path / "parts"))
    for strategy in ("ddp", "fsdp"):
        two = run(tmp_path / strategy, *reflow, f"strategy={strategy}", *TWO, settings=ON_PAIRS)
        assert curve(two) == pytest.approx(curve(single), rel=1e-5)
        assert_close(trained_state(two), trained_state(single))
        value = [float(row["val/straightness"]) for row in metrics(two) if row["val/straightness"]]
        assert value == pytest.approx(values, rel=1e-4)

    cli.sample(f"ckpt={single}", *RECORD, "guidance=none", "out=pairs2")
    again = [word.replace("/pairs", "/pairs2") for word in on_pairs]
    one = run(tmp_path / "one", "experiment=one_step", f"init.ckpt={single}", *again, FOUR, settings=ON_PAIRS)
    assert {name for row in metrics(one) for name in row if "loss_t" in name and "val" not in name} == {
        "train/loss_t0.9"
    }
    assert "1 evaluation of the velocity" in cli.sample(
        f"ckpt={one}", *REQUEST, "sampler.steps=1", "guidance=none", "out=made"
    )
    mixed = [f"data.shards=[{tmp_path}/pairs,{tmp_path}/pairs2]", "data.resolution=32"]
    assert "were not made in the same way: recorded.sampler.guidance" in cli.error(
        "train", "data=latents", "coupling=recorded", *mixed
    )


def test_images_have_no_record(cli: CommandLine) -> None:
    assert cli.error("train", "coupling=recorded").startswith(
        "coupling=recorded needs latents together with the noise that they were made from, and the data has none"
    )
