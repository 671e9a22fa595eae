"""Every sampler, grid and guidance of conf/, built by its name and run from noise to latents."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdit.config.build import CONFIG_DIR, build
from rfdit.protocols import VelocityNetwork
from rfdit.randomness import SampleGenerator
from rfdit.sampler import AdaptiveProjected, Autoguidance, GuidanceInterval, Sampler
from tests.support.commands.composing import composed
from tests.support.models.fields import MEAN, GaussianBackbone, GaussianMeanBackbone, means

SAMPLERS = sorted(path.stem for path in CONFIG_DIR.glob("sampler/*.yaml"))
GRIDS = sorted(path.stem for path in CONFIG_DIR.glob("sampler/grid/*.yaml"))
GUIDANCES = sorted(path.stem for path in CONFIG_DIR.glob("guidance/*.yaml"))
NEEDS = {
    "resolution": ["sampler.grid.base_size=2"],
    "custom": ["sampler.grid.times=[1,0.7,0.5,0.2,0]", "sampler.steps=4"],
    "autoguidance": ["guidance.guide.ckpt=another"],
}
DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / name).read_text() for name in ("sampling.md", "solvers.md"))
COMMANDS = [shlex.split(line) for line in re.findall(r"^python sample\.py (.*)", PAGES, re.MULTILINE)]


def built(*overrides: str) -> Sampler:
    """The sampler of sample.py with these overrides."""
    sampler = build(composed("sample", "sampler.steps=50", *overrides)["sampler"])
    assert isinstance(sampler, Sampler)
    return sampler


def mean_of(sampler: Sampler, network: VelocityNetwork | None = None) -> float:
    """The mean of what is sampled of N(MEAN, 0.3^2), guided away from the same."""
    generator = SampleGenerator(seed=0, keys=torch.arange(64))
    noise, cond = generator.fork("image").normal(4, 4, 4), means(64, MEAN)
    return (
        sampler(network or GaussianBackbone(), noise, cond, cond, generator=generator.fork("sde"))
        .mean()
        .item()
    )


@pytest.mark.parametrize("option", SAMPLERS)
def test_samplers(option: str) -> None:
    needed = {"ddpm": ["sampler.solver.variance=small"], "meanflow": ["guidance=none"]}.get(option, [])
    network = GaussianMeanBackbone() if option == "meanflow" else GaussianBackbone()
    assert mean_of(built(f"sampler={option}", *needed), network) == pytest.approx(MEAN, abs=0.05)


@pytest.mark.parametrize("option", GRIDS)
def test_grids(option: str) -> None:
    sampler = built(f"sampler/grid={option}", "sampler=heun", *NEEDS.get(option, []))
    assert mean_of(sampler) == pytest.approx(MEAN, abs=0.05)


@pytest.mark.parametrize("option", GUIDANCES)
def test_guidances(option: str) -> None:
    """Guidance changes nothing if condition and null agree."""
    sampler = built(f"guidance={option}", "sampler=heun", *NEEDS.get(option, []))
    if isinstance(sampler.guidance, Autoguidance):  # whose checkpoint is loaded with the main one's
        sampler.guidance.guide = GaussianBackbone()
    network: Any = GaussianBackbone()
    network.route, network.path = None, (1, 1)  # as one that may leave blocks out
    network.guidance = 1.0 if option == "embedded" else None  # as one that takes the scale
    assert mean_of(sampler, network) == pytest.approx(MEAN, abs=0.1)


def test_an_interval_holds_any_guidance() -> None:
    guidance = built("guidance=interval", "guidance@guidance.inside=apg", "guidance.inside.scale=8").guidance
    assert isinstance(guidance, GuidanceInterval)
    assert isinstance(guidance.inside, AdaptiveProjected)
    assert guidance.inside.scale == 8


@pytest.mark.parametrize("diffusion", ["Constant", "Sine", "Decreasing"])
def test_diffusions_are_chosen_by_their_target(diffusion: str) -> None:
    target = f"sampler.solver.diffusion._target_=rfdit.sampler.{diffusion}Diffusion"
    assert mean_of(built("sampler=sde", target)) == pytest.approx(MEAN, abs=0.05)


def test_what_a_grid_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"sampler\.grid\.base_size is not set"):
        built("sampler/grid=resolution")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_documented_commands(words: list[str]) -> None:
    built(*words)
