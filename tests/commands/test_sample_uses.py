"""Uses of a model other than images from noise, each through the command line."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdit.generate.uses.from_image import read_mask
from tests.support.commands.command_line import TWENTY_STEPS, CommandLine
from tests.support.training.runs import Trained

RED = "prompts=[a large red circle]"


@pytest.fixture
def run(trained: Trained) -> str:
    trained(*TWENTY_STEPS)
    return "ckpt=run"


@pytest.fixture
def photo(cli: CommandLine) -> np.ndarray:
    """photo.png, of noise, since anything smooth might come from a model by itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return pixels


def read_image(path: str) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


class TestImageToImage:
    USE = ("use=image_to_image", "use.image=photo.png")

    def test_strength_goes_from_the_image_to_none_of_it(
        self, cli: CommandLine, run: str, photo: np.ndarray
    ) -> None:
        distances = []
        for strength in (0.01, 0.4, 1):
            cli.sample(run, RED, *self.USE, f"use.strength={strength}", f"out={strength}")
            distances.append(abs(read_image(f"{strength}/00000.png") - photo).mean())
        assert distances[0] < 3
        assert distances[0] < distances[1] < distances[2]
        cli.sample(run, RED, "out=plain")
        assert np.array_equal(read_image("1/00000.png"), read_image("plain/00000.png"))

    def test_images_of_any_size_are_fitted(self, cli: CommandLine, run: str) -> None:
        Image.new("RGB", (90, 50), "orange").save("photo.png")
        cli.sample(run, RED, *self.USE, "use.strength=0.01", "out=out")
        assert abs(read_image("out/00000.png") - [255, 165, 0]).mean() < 4

    def test_bad_input(self, cli: CommandLine, run: str) -> None:
        assert cli.error("sample", run, RED, *self.USE) == "use.image=photo.png is not a file; give an image"
        Path("photo.png").write_text("no image")
        message = cli.error("sample", run, RED, *self.USE)
        assert (
            message
            == "use.image=photo.png cannot be read as an image: cannot identify image file 'photo.png'"
        )
        message = cli.error("sample", run, RED, *self.USE, "use.strength=1.5")
        assert message == "use.strength=1.5 must be above 0 and at most 1"
        assert (
            cli.error("sample", run, RED, "use=image_to_image") == "use.image is not set; give use.image=..."
        )


class TestInpaint:
    USE = ("use=inpaint", "use.image=photo.png", "use.mask=mask.png")

    def mask(self, size: tuple[int, int] = (32, 32), painted: int = 16) -> np.ndarray:
        """mask.png, white in its right part; True there."""
        white = np.zeros((size[1], size[0]), dtype=bool)
        white[:, size[0] - painted :] = True
        Image.fromarray(white.astype(np.uint8) * 255).save("mask.png")
        return white

    @pytest.mark.parametrize("sampler", ["euler", "heun"])
    def test_what_is_black_stays(self, cli: CommandLine, run: str, photo: np.ndarray, sampler: str) -> None:
        white = self.mask(painted=13)  # not a whole number of patches
        cli.sample(run, RED, *self.USE, f"sampler={sampler}", "out=out")
        made = read_image("out/00000.png")
        assert np.array_equal(made[~white], photo[~white])
        assert abs(made[white] - photo[white]).mean() > 30
        # The network has seen the known part: without it, the painted one is another.
        cli.sample(run, RED, f"sampler={sampler}", "out=plain")
        assert not np.array_equal(made[white], read_image("plain/00000.png")[white])

    def test_a_solver_that_draws_noise(self, cli: CommandLine, run: str, photo: np.ndarray) -> None:
        self.mask()
        message = cli.error("sample", run, RED, *self.USE, "sampler=sde", "sampler.grid.size=0.5")
        assert message == (
            "sampler.solver=EulerMaruyama draws noise in every step, and use=inpaint keeps what is known on its "
            "straight path; use sampler=euler or heun"
        )

    def test_a_thin_line_in_a_large_mask_is_painted(self, tmp_path: Path) -> None:
        file, white = str(tmp_path / "line.png"), np.zeros((512, 512), dtype=bool)
        white[100, 256:] = True
        Image.fromarray(white.astype(np.uint8) * 255).save(file)
        small, same, large = (
            read_mask(file, (side, side), setting="use.mask").numpy() for side in (32, 512, 1024)
        )
        assert np.argwhere(small).tolist() == [[6, column] for column in range(16, 32)]  # 100 // 16
        assert np.array_equal(same, white)
        assert np.array_equal(large, white.repeat(2, 0).repeat(2, 1))

    def test_bad_masks(self, cli: CommandLine, run: str, photo: np.ndarray) -> None:
        self.mask(size=(32, 30))
        assert cli.error("sample", run, RED, *self.USE) == (
            "use.mask=mask.png has 30x32 pixels (height x width) and use.image=photo.png has 32x32; they must be "
            "of one size"
        )
        self.mask(painted=0)
        assert "mask.png is all black" in cli.error("sample", run, RED, *self.USE)
        whole = Path("photo.png").read_bytes()
        Path("mask.png").write_bytes(whole[: len(whole) // 2])
        assert "use.mask=mask.png cannot be read as an image: " in cli.error("sample", run, RED, *self.USE)


class TestInterpolation:
    def test_between_prompts_and_seeds(self, cli: CommandLine, run: str) -> None:
        prompts = "prompts=[a large red circle,a small blue star]"
        printed = cli.sample(
            run, prompts, "seeds=[3,9]", "use=interpolate", "use.frames=4", "out=out", "precision=fp32"
        )
        assert "5 images in out, together in out/interpolation.webp" in printed
        frames = [read_image(f"out/{i:05d}.png") for i in range(5)]
        for end, given, seed in ((0, "a large red circle", 3), (4, "a small blue star", 9)):
            cli.sample(run, f"prompts=[{given}]", f"seed={seed}", f"out=end{end}", "precision=fp32")
            assert abs(frames[end] - read_image(f"end{end}/00000.png")).max() <= 1
        strip = read_image("out/strip.png")
        assert np.array_equal(strip, np.concatenate(frames, axis=1))
        steps = [abs(a - b).mean() for a, b in pairwise(frames)]
        assert max(steps) < abs(frames[0] - frames[-1]).mean()
        with Image.open("out/interpolation.webp") as film:
            assert getattr(film, "n_frames", 1) == 5
            film.seek(4)
            assert np.array_equal(np.asarray(film.convert("RGB")), frames[4])

    def test_it_needs_two_ends(self, cli: CommandLine, run: str) -> None:
        assert "needs two prompts or two seeds" in cli.error("sample", run, RED, "use=interpolate")

    def test_seeds_need_a_solver_without_noise(self, cli: CommandLine, run: str) -> None:
        request = [run, "use=interpolate", "use.frames=2", "sampler=sde", "out=out"]
        message = cli.error("sample", *request, RED, "seeds=[0,1]")
        assert (
            "use=interpolate goes from seed to seed by their first noise alone; use sampler=euler" in message
        )
        cli.sample(*request, "prompts=[a large red circle,a small blue star]")  # each step's noise is shared


class TestTrajectory:
    @pytest.mark.parametrize("sampler", ["euler", "heun"])
    def test_from_noise_to_the_image(self, cli: CommandLine, run: str, sampler: str) -> None:
        cli.sample(run, RED, f"sampler={sampler}", "sampler.steps=8", "out=plain")
        for predicted in ("true", "false"):
            cli.sample(
                run, RED, f"sampler={sampler}", "sampler.steps=8", "use=trajectory", "use.panels=5",
                f"use.predicted={predicted}", f"out=strip-{predicted}",
            )  # fmt: skip
        strips = {name: read_image(f"strip-{name}/00000.png") for name in ("true", "false")}
        for strip in strips.values():
            assert strip.shape == (32, 5 * 32, 3)
            assert np.array_equal(strip[:, -32:], read_image("plain/00000.png"))
        first_seen, last_seen = strips["false"][:, :32], strips["false"][:, -64:-32]
        assert first_seen.std() > 80  # noise of unit variance, clipped
        assert last_seen.std() < first_seen.std()
        assert strips["true"][:, :32].std() < first_seen.std()  # the prediction is none

    def test_sheet_and_bad_input(self, cli: CommandLine, run: str) -> None:
        printed = cli.sample(run, RED, "use=trajectory", "out=out")  # two steps have three states
        assert "together in out/grid.png" in printed
        assert read_image("out/00000.png").shape == (32, 96, 3)
        assert json.loads(Path("out/samples.json").read_text())["config"]["use"]["panels"] == 8
        assert (
            cli.error("sample", run, RED, "use=trajectory", "use.panels=1")
            == "use.panels=1 must be at least 2"
        )
