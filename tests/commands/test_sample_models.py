"""Models that sample.py reads besides a run's checkpoint: exported folders, the hub, and a second network as guide."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdit.batch import Condition
from rfdit.checkpoint.saved_run import read_checkpoint
from rfdit.generate.guide import Guide
from rfdit.generate.load import load_network
from rfdit.pretrained.frozen import weights_digest
from tests.support.commands.command_line import CommandLine
from tests.support.servers.hub import empty_snapshot
from tests.support.training.checkpoints import LABELS, forge, write_checkpoint

PROMPTS = "prompts=[a small red circle,a large blue star left of a small green square]"
AUTO = ["guidance=autoguidance", "guidance.guide.ckpt=guide.ckpt"]


@pytest.fixture
def run(cli: CommandLine) -> str:
    """Two checkpoints of other sizes in the working directory, with all their weights at random."""
    write_checkpoint(Path("run.ckpt"))
    write_checkpoint(Path("guide.ckpt"), "model.width=12", "model.depth=1", "text_encoder.width=10")
    return "ckpt=run.ckpt"


def images(cli: CommandLine, *overrides: str) -> np.ndarray:
    cli.sample(PROMPTS, "precision=fp32", "out=made", *overrides)
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path("made").glob("0*.png"))]).astype(
        int
    )


def test_records_name_the_weights_as_they_were_trained(cli: CommandLine, run: str) -> None:
    """The recorded weights are the same, to whatever precision they are rounded for sampling."""
    digests = []
    for precision in ("bf16", "fp32"):
        cli.sample(run, PROMPTS, f"precision={precision}", f"out={precision}")
        digests.append(json.loads(Path(precision, "samples.json").read_text())["weights_sha256"])
    network = load_network(read_checkpoint(Path("run.ckpt")), "ema")
    assert digests == [weights_digest(network)] * 2


class TestExported:
    @pytest.mark.parametrize("weights", ["ema", "raw"])
    def test_it_makes_the_same_images(self, cli: CommandLine, run: str, weights: str) -> None:
        cli.export(run, "out=exported", f"weights={weights}")
        expected = images(cli, run, f"weights={weights}")
        assert np.array_equal(images(cli, "ckpt=exported", f"weights={weights}"), expected)

    def test_images_land_in_the_folder(self, cli: CommandLine, run: str) -> None:
        cli.export(run, "out=exported")
        cli.sample("ckpt=exported", PROMPTS)
        assert len(list(Path("exported").glob("samples/*/grid.png"))) == 1

    def test_a_hub_name(self, cli: CommandLine, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = empty_snapshot(monkeypatch)
        cli.export(run, f"out={snapshot}")
        assert np.array_equal(images(cli, "ckpt=someone/model"), images(cli, run))
        cli.sample("ckpt=someone/model", PROMPTS)
        assert len(list(Path("samples").glob("*/grid.png"))) == 1  # not in the hub's cache
        assert not list(snapshot.glob("samples"))

    def test_a_folder_that_would_run_something_else(self, cli: CommandLine, run: str) -> None:
        cli.export(run, "out=exported")
        model = json.loads(Path("exported/config.json").read_text())["config"]["model"]
        forge(Path("exported"), model=model | {"_target_": "os.system", "command": "touch ran"})
        for words in (["ckpt=exported"], [run, "guidance=autoguidance", "guidance.guide.ckpt=exported"]):
            assert "model._target_=os.system is not a part of a model" in cli.error("sample", *words, PROMPTS)
        assert not Path("ran").exists()


class TestAutoguidance:
    @pytest.mark.parametrize("scale", [1.0, 1.5])
    def test_the_formula(self, cli: CommandLine, run: str, scale: float) -> None:
        """In one step, images are linear in the velocity: weak + scale (strong - weak)."""
        one = ["sampler.steps=1"]
        strong = images(cli, run, "guidance=none", *one)
        weak = images(cli, "ckpt=guide.ckpt", "guidance=none", *one)
        made = images(cli, run, *AUTO, f"guidance.scale={scale}", *one)
        inside = np.logical_and.reduce([(x > 1) & (x < 254) for x in (strong, weak, made)])
        assert inside.mean() > 0.2
        assert abs(made - (weak + scale * (strong - weak)))[inside].max() <= 2
        assert abs(strong - weak)[inside].mean() > 5

    def test_a_network_does_not_guide_itself(self, cli: CommandLine, run: str) -> None:
        made = images(cli, run, "guidance=autoguidance", "guidance.guide.ckpt=run.ckpt", "guidance.scale=3")
        assert abs(made - images(cli, run, "guidance=none")).max() <= 1

    def test_in_an_interval_and_at_several_scales(self, cli: CommandLine, run: str) -> None:
        inside = ["guidance=interval", "guidance@guidance.inside=autoguidance"]
        inside += ["guidance.inside.guide.ckpt=guide.ckpt", "guidance.high=1"]
        made = images(cli, run, *inside, "scales=[1.5,3]")
        for column, scale in enumerate((1.5, 3)):
            alone = images(cli, run, *AUTO, f"guidance.scale={scale}", "matrix=false", "seeds=[0,0]")
            assert abs(made[column::2] - alone[:2]).max() <= 1

    @pytest.mark.slow
    def test_interpolation_ends_at_its_prompts(self, cli: CommandLine, run: str) -> None:
        """The condition that guidance moves away from follows the prompt."""
        made = images(cli, run, *AUTO, "use=interpolate", "use.frames=2")
        Path("made/00002.png").unlink()
        ends = images(cli, run, *AUTO, "matrix=false", "seeds=[0,0]")
        assert abs(made[[0, 2]] - ends).max() <= 1

    def test_the_record_names_the_guides_weights(self, cli: CommandLine, run: str) -> None:
        images(cli, run, *AUTO)
        record = json.loads(Path("made/samples.json").read_text())
        assert len(record["guide_sha256"]) == 64
        assert record["guide_sha256"] != record["weights_sha256"]

    @pytest.mark.slow
    def test_a_guide_that_does_not_fit(self, cli: CommandLine, run: str) -> None:
        write_checkpoint(Path("labels.ckpt"), *LABELS)
        latents = {"name": "sd", "channels": 3, "downsampling": 8, "scale": 0.18215, "shift": 0.0}
        write_checkpoint(Path("latent.ckpt"), latents=latents)
        write_checkpoint(Path("small.ckpt"), "model.positions=learned", "model.input_size=16")

        def error(guide: str) -> str:
            return cli.error("sample", run, PROMPTS, "guidance=autoguidance", f"guidance.guide.ckpt={guide}")

        start = "guidance.guide.ckpt={} does not fit ckpt=run.ckpt: "
        assert error("labels.ckpt").startswith(
            start.format("labels.ckpt") + "it knows 5 classes (there captions); give another training"
        )
        assert "latents.name=sd (there identity), latents.downsampling=8 (there 1)" in error("latent.ckpt")
        assert "which exist for [16, 16] only" in error("small.ckpt")
        assert error("none.ckpt").startswith("none.ckpt does not exist")
        assert cli.error("sample", run, PROMPTS, "guidance=autoguidance") == (
            "guidance.guide.ckpt is not set; give guidance.guide.ckpt=..."
        )
        assert cli.error("sample", run, PROMPTS, *AUTO, "negative=a star").startswith(
            "negative=a star has no effect with guidance=autoguidance"
        )

    def test_it_is_loaded_by_sample_alone(self) -> None:
        z, cond = torch.zeros(1, 3, 4, 4), Condition(pooled=torch.zeros(1, 2))
        with pytest.raises(
            ValueError, match=r"guidance\.guide\.ckpt=guide\.ckpt is loaded by sample.py only"
        ):
            Guide(ckpt="guide.ckpt")(z, torch.ones(1), cond)
