"""The preset of pixels without an autoencoder, from a folder of images to an exported model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rfdit
from rfdit.checkpoint.saved_run import read_checkpoint
from rfdit.eval.records import read_records
from tests.support.commands.command_line import CommandLine, images
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference

# experiment=jit at the size of a test.
SMALL = [
    "experiment=jit", "data.shards=pictures", "conditioner.num_classes=2", "data.resolution=32", "patch=p8",
    "model.patch_bottleneck=12", "schedule.warmup_steps=0", "compile=false",
]  # fmt: skip


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_model_of_pixels(cli: CommandLine) -> None:
    generator = np.random.default_rng(0)
    for name in [f"{kind}/{number}.png" for kind in ("dark", "light") for number in range(4)]:
        file = Path("pictures", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
    cli.train("run_dir=run", *SMALL, "trainer.max_steps=2")
    shutil.copytree("run", "half")
    cli.train("run_dir=run", *SMALL, "ckpt=last", "trainer.max_steps=4")
    cli.train("run_dir=half", *SMALL, "ckpt=last", "trainer.max_steps=4")
    whole, again = (read_checkpoint(Path(run, "checkpoints/last.ckpt")) for run in ("run", "half"))
    assert whole.network["backbone.patches.reduce.weight"].shape == (12, 3 * 8 * 8)
    assert all((tensor == again.network[name]).all() for name, tensor in whole.network.items())

    cli.sample("ckpt=run", "labels=[light,0]", "out=images")
    assert images(Path("images")).shape == (2, 32, 32, 3)
    cli.sample("ckpt=run", *tiny_eval(write_reference(Path("noise.npz")), samples=12, inputs="balanced"))
    assert read_records(Path("run"))[-1]["values"]["fid"] > 0
    cli.export("ckpt=run", "out=exported")
    cli.sample("ckpt=exported", "labels=[light,0]", "out=images_of_it")
    assert np.array_equal(images(Path("images")), images(Path("images_of_it")))
    assert rfdit.load("exported", accelerator="cpu")(1, steps=2)[0].size == (32, 32)
    assert cli.error("export", "ckpt=run", "out=folder", "format=diffusers").startswith(
        "format=diffusers supports"
    )
