"""What the page does, without a browser: settings in, pictures out."""

import copy
import dataclasses
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import rfdit.demo
from rfdit.config import CONFIG_DIR, composed, register
from rfdit.demo import make_painter
from rfdit.playground import html
from rfdit.playground.choices import guidances, solvers
from rfdit.playground.history import COLUMNS, History
from rfdit.playground.painter import Glimpse, Painter, Painting
from rfdit.playground.settings import Form, Settings, quoted
from tests.command_line import CommandLine
from tests.interchange.conftest import LABELS, write_checkpoint

PLAIN = Settings(
    given="a small red circle",
    negative=None,
    seed=3,
    count=2,
    solver="euler",
    steps=3,
    shift=1.0,
    guidance="cfg",
    scale=3.0,
)
# What the page's fields hold for it: numbers may come whole.
FIELDS = dataclasses.asdict(PLAIN) | {"negative": "", "seed": "3", "shift": 1, "scale": 3}
LEFT_OUT = ["guidance/legacy_three_channel"]


def painter_of(ckpt: Path, **settings: Any) -> Painter:
    """As `python -m rfdit.demo` makes it."""
    register()
    rfdit.demo.register_schema()
    return make_painter(composed("demo") | {"ckpt": str(ckpt), "accelerator": "cpu"} | settings)


def paint(painter: Painter, settings: Settings) -> tuple[list[Glimpse], Painting]:
    *glimpses, painting = painter(settings)
    assert isinstance(painting, Painting)
    assert all(isinstance(glimpse, Glimpse) for glimpse in glimpses)
    return glimpses, painting  # type: ignore[return-value]


def sampled(cli: CommandLine, command: str) -> Tensor:
    """What sample.py writes for a command that the page shows."""
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "sample.py")
    cli.sample(*words, "out=again")
    files = sorted(Path("again").glob("0*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "run.ckpt"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def painter(checkpoint: Path) -> Painter:
    return painter_of(checkpoint)


def options(group: str) -> set[str]:
    return {file.stem for file in (CONFIG_DIR / group).glob("*.yaml")}


def test_what_is_offered_is_what_the_groups_have() -> None:
    register()
    offered = [choice.name for choice in solvers(())]
    assert offered[0] == "euler"
    assert set(offered) == options("sampler")
    offered = [choice.name for choice in guidances(LEFT_OUT)]
    assert offered[0] == "cfg"
    assert set(offered) <= options("guidance") - {"legacy_three_channel"}
    scales = {choice.name: (choice.setting, choice.scale) for choice in guidances(LEFT_OUT)}
    assert scales["none"] == (None, None)
    assert scales["apg"] == ("guidance.scale", 5.0)
    assert scales["interval"] == ("guidance.inside.scale", 3.0)
    assert next(c for c in solvers(()) if c.name == "sde").steps == 100


@pytest.mark.parametrize(
    "change",
    [
        {"solver": "euler", "guidance": "apg"},
        {"solver": "heun", "guidance": "cfg_rescale"},
        {"solver": "midpoint", "guidance": "cfg_zero_star"},
        {"solver": "rk4", "guidance": "interval", "scale": 2.5},
        {"solver": "sde", "guidance": "none", "scale": None},
        {"negative": "a large blue star", "shift": 2.5, "count": 3, "seed": 2**62 + 1},
        {"given": """it's "1,2" = [x] ${oc.env:HOME} \\"""},
        {"count": 34},  # more than a batch
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_the_pictures_are_those_of_the_command(
    cli: CommandLine, painter: Painter, change: dict[str, Any]
) -> None:
    _, painting = paint(painter, dataclasses.replace(PLAIN, **change))
    assert len(painting.images) == change.get("count", 2)
    assert torch.equal(painting.images, sampled(cli, painting.command))


def test_classes_by_their_numbers_from_an_exported_folder(
    cli: CommandLine, checkpoint: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "labels.ckpt", *LABELS)
    names = tmp_path / "names.txt"
    names.write_text("0 cat\n1 dog\n2 cow\n3 hen\n4 pig\n")
    cli.export(f"ckpt={tmp_path / 'labels.ckpt'}", "weights=raw", f"out={tmp_path / 'exported'}")
    painter = painter_of(tmp_path / "exported", class_names=str(names))
    assert painter.form.classes == ["0: cat", "1: dog", "2: cow", "3: hen", "4: pig"]
    settings = painter.form.read(FIELDS | {"given": 3, "negative": "left over"})
    assert settings.negative is None
    _, painting = paint(painter, settings)
    assert "labels=[3]" in painting.command
    assert torch.equal(painting.images, sampled(cli, painting.command))


@hypothesis.settings(max_examples=50, deadline=None)
@given(st.text(alphabet="\\\"'${}aé: \n,[]=", max_size=12))
def test_quoted_text_is_read_as_it_was(text: str) -> None:
    parsed = OverridesParser.create().parse_overrides([f"prompts=[{quoted(text)}]"])[0].value()
    assert isinstance(parsed, list)
    prompts = [str(item) for item in parsed]
    assert OmegaConf.to_container(OmegaConf.create({"prompts": prompts}), resolve=True) == {"prompts": [text]}


def test_glimpses_lead_to_the_picture(painter: Painter) -> None:
    other = copy.copy(painter)
    other.previews = 3
    glimpses, painting = paint(other, PLAIN)
    assert [(g.step, g.steps) for g in glimpses] == [(1, 3), (2, 3), (3, 3)]
    assert [g.t for g in glimpses] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [g.share for g in glimpses] == pytest.approx([0, 1 / 3, 2 / 3])
    # Euler's last step goes to the predicted data.
    assert torch.equal(glimpses[-1].images, painting.images)
    assert not torch.equal(glimpses[0].images, painting.images)
    other.previews = 0
    none, same = paint(other, PLAIN)
    assert none == []
    assert torch.equal(same.images, painting.images)
    assert painting.evaluations == 3


def test_a_single_adaptive_step_is_shown_as_well(cli: CommandLine, painter: Painter) -> None:
    settings = dataclasses.replace(PLAIN, solver="dopri5", steps=1, count=1)
    glimpses, painting = paint(painter, settings)
    shares = [glimpse.share for glimpse in glimpses]
    assert 3 < len(shares) <= 8
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert torch.equal(painting.images, sampled(cli, painting.command))


def test_glimpses_of_a_second_batch_show_the_first(painter: Painter) -> None:
    glimpses, painting = paint(painter, dataclasses.replace(PLAIN, count=34))
    sizes = [len(glimpse.images) for glimpse in glimpses]
    assert sizes == [32, 32, 32, 34, 34, 34]
    assert torch.equal(glimpses[-1].images[:32], painting.images[:32])
    assert [g.share for g in glimpses] == sorted(g.share for g in glimpses)


def test_sampling_ends_when_nobody_waits(painter: Painter) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    assert isinstance(painter.pipeline.network.backbone, torch.nn.Module)
    hook = painter.pipeline.network.backbone.register_forward_hook(count)
    events = painter(dataclasses.replace(PLAIN, steps=250))
    assert isinstance(events, Iterator)
    next(events)
    events.close()  # type: ignore[attr-defined]
    hook.remove()
    assert 0 < calls < 250
    assert len(paint(painter, PLAIN)[1].images) == 2


def test_visitors_do_not_disturb_each_other(painter: Painter) -> None:
    wanted = [dataclasses.replace(PLAIN, seed=seed) for seed in range(4)]
    alone = [paint(painter, settings)[1].images for settings in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda settings: paint(painter, settings)[1].images, wanted))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_the_fields_are_read(painter: Painter) -> None:
    assert painter.form.read(FIELDS) == PLAIN
    assert painter.form.read(FIELDS | {"guidance": "none", "negative": "x"}) == dataclasses.replace(
        PLAIN, guidance="none", scale=None
    )


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("given", "  ", "Prompt: it is empty; say what to paint."),
        ("steps", 0, "Steps: 0 is no whole number from 1 to 250."),
        ("steps", 2.5, "Steps: 2.5 is no whole number from 1 to 250."),
        ("steps", 251, "Steps: 251 is no whole number from 1 to 250."),
        ("steps", None, "Steps: an empty field is no whole number from 1 to 250."),
        ("count", float("nan"), "Pictures: nan is no whole number from 1 to 16."),
        ("seed", "seven", f"Seed: seven is no whole number from 0 to {2**63 - 1}."),
        ("seed", str(2**63), f"Seed: {2**63} is no whole number from 0 to {2**63 - 1}."),
        ("seed", "", f"Seed: an empty field is no whole number from 0 to {2**63 - 1}."),
        ("shift", 0, "Time shift: 0 is no number above 0."),
        ("scale", -1, "Scale: -1 is no number from 0 on."),
        ("solver", "x", "Solver: x is none; choose one of euler, dopri5, heun, midpoint, rk4, sde."),
    ],
)
def test_bad_input_gets_a_sentence(painter: Painter, field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        painter.form.read(FIELDS | {field: value})


def test_an_error_while_sampling_reaches_the_visitor(painter: Painter) -> None:
    wrong = dataclasses.replace(PLAIN, steps=0)
    with pytest.raises(ValueError, match=r"sampler\.steps=0 must be at least 1"):
        list(painter(wrong))


def test_history_keeps_the_newest(painter: Painter, tmp_path: Path) -> None:
    history = History(tmp_path, most=2)
    made = [paint(painter, dataclasses.replace(PLAIN, seed=seed, count=seed + 1))[1] for seed in range(3)]
    for painting in made:
        history = history.added(painting)
    assert history.paintings == (made[2], made[1])
    assert [caption for _, caption in history.gallery()] == ["3", "3", "3", "2", "2"]
    assert [history.painting_of(i).settings.seed for i in range(5)] == [2, 2, 2, 1, 1]
    assert sorted(tmp_path.iterdir()) == sorted(Path(file) for file, _ in history.gallery())
    second = np.array(Image.open(history.gallery()[1][0]))
    assert np.array_equal(second, made[2].images[1].permute(1, 2, 0).numpy())
    rows = history.table()
    assert rows[0][:5] == ["3", "a small red circle", "", "2", "3"]
    assert all(len(row) == len(COLUMNS) for row in rows)


def test_words_of_a_visitor_are_no_html() -> None:
    shown = html.error("<script>${1}</script> {{2}}")
    assert "<script" not in shown
    assert not set("${}") & set(shown)


class Demo:
    """`python -m rfdit.demo` in this process, up to its error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def error(self, *overrides: str) -> str:
        self.patch.setattr(sys, "argv", ["demo", *overrides])
        with pytest.raises(SystemExit) as stopped:
            rfdit.demo.main()
        return str(stopped.value.code)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Demo:
    monkeypatch.chdir(tmp_path)
    return Demo(monkeypatch)


def test_the_command_explains_what_is_wrong(
    demo: Demo, painter: Painter, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.error("max_stepz=2") == "error: max_stepz is no setting; did you mean max_steps?"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = demo.error(f"ckpt={checkpoint}", f"port={port}")
    assert message.startswith(f"error: host=127.0.0.1, port={port} cannot be served from")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "ckpt is not set; give ckpt=RUN_FOLDER" in demo.error(f"port={port}")
    assert "./none does not exist" in demo.error("ckpt=./none", f"port={port}")
    with pytest.raises(ValueError, match="max_steps=0 must be at least 1"):
        Form(solvers=[], guidances=[], classes=None, max_steps=0, max_pictures=1)
    with pytest.raises(ValueError, match="previews=-1 must not be negative"):
        Painter(saved=painter.saved, form=painter.form, overrides=[], previews=-1)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.error(f"ckpt={checkpoint}").endswith("not installed; run pip install 'rfdit[demo]'")
