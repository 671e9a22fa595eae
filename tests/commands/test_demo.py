"""The page's work without a browser: settings in, images out."""

import base64
import copy
import dataclasses
import io
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import zlib
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

import rfdit.commands.demo
from rfdit.commands.demo import load_model
from rfdit.config.build import CONFIG_DIR, composed, register
from rfdit.config.overrides import quoted
from rfdit.playground import html
from rfdit.playground.form import LARGEST_FILE, Form, Settings, Upload, choices
from rfdit.playground.history import COLUMNS, History
from rfdit.playground.model import PlaygroundModel, Preview, Result
from tests.support.commands.command_line import CommandLine
from tests.support.commands.processes import environment
from tests.support.training.checkpoints import LABELS, write_checkpoint

PLAIN = Settings(
    input="a small red circle",
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


def model_of(ckpt: Path, **settings: Any) -> PlaygroundModel:
    """The model as `rfdit demo` makes it."""
    register()
    return load_model(composed("demo") | {"ckpt": str(ckpt), "accelerator": "cpu"} | settings)


def generate(model: PlaygroundModel, settings: Settings) -> tuple[list[Preview], Result]:
    *previews, result = model(settings)
    assert isinstance(result, Result)
    assert all(isinstance(preview, Preview) for preview in previews)
    return previews, result  # type: ignore[return-value]


def sampled(cli: CommandLine, command: str) -> Tensor:
    """The images that sample.py writes for a command that the page shows."""
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
def model(checkpoint: Path) -> PlaygroundModel:
    return model_of(checkpoint)


def options(group: str) -> set[str]:
    return {file.stem for file in (CONFIG_DIR / group).glob("*.yaml")}


def test_what_is_offered_is_what_the_groups_have() -> None:
    register()
    solvers, guidances = choices("sampler", ()), choices("guidance", LEFT_OUT)
    assert next(iter(solvers)) == "euler"
    assert set(solvers) == options("sampler")
    assert next(iter(guidances)) == "cfg"
    assert set(guidances) <= options("guidance") - {"legacy_three_channel"}
    scales = {name: choice.scale for name, choice in guidances.items()}
    assert scales["none"] is None
    assert scales["apg"] == ("guidance.scale", 5.0)
    assert scales["interval"] == ("guidance.inside.scale", 3.0)
    assert solvers["sde"].node["steps"] == 100


@pytest.mark.parametrize(
    "change",
    [
        {"solver": "euler", "guidance": "apg"},
        {"solver": "heun", "guidance": "cfg_rescale"},
        {"solver": "midpoint", "guidance": "cfg_zero_star"},
        {"solver": "rk4", "guidance": "interval", "scale": 2.5},
        {"solver": "sde", "guidance": "none", "scale": None},
        {"negative": "a large blue star", "shift": 2.5, "count": 3, "seed": 2**62 + 1},
        {"input": """it's "1,2" = [x] ${oc.env:HOME} \\"""},
        {"count": 34},  # more than a batch
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_the_images_are_those_of_the_command(
    cli: CommandLine, model: PlaygroundModel, change: dict[str, Any]
) -> None:
    _, result = generate(model, dataclasses.replace(PLAIN, **change))
    assert len(result.images) == change.get("count", 2)
    assert torch.equal(result.images, sampled(cli, result.command))


def upload(name: str = "my photo (1).png", data: bytes | None = None) -> str:
    """The field of an image to start from; by default with a large square of noise."""
    if data is None:
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, "PNG")
        data = file.getvalue()
    return f"{name}\ndata:image/png;base64,{base64.b64encode(data).decode()}"


def test_an_image_to_start_from_gives_those_of_the_command(cli: CommandLine, model: PlaygroundModel) -> None:
    settings = model.form.read(FIELDS | {"image": upload(), "strength": 0.5})
    assert settings.image is not None
    Path(settings.image.name).write_bytes(settings.image.data)
    previews, result = generate(model, settings)
    assert [preview.t for preview in previews] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert torch.equal(result.images, sampled(cli, result.command))
    assert not torch.equal(result.images, generate(model, PLAIN)[1].images)


@pytest.mark.slow
def test_adapters_whose_base_has_moved(cli: CommandLine) -> None:
    cli.train("run_dir=run")
    cli.train("run_dir=lora", "init=weights", "init.ckpt=run", "adapter=lora", "adapter.r=2")
    Path("run").rename("moved")
    model = model_of(Path("lora"), base="moved")
    _, result = generate(model, PLAIN)
    assert 'base="moved"' in result.command
    assert torch.equal(sampled(cli, result.command), result.images)


def test_classes_by_their_numbers_from_an_exported_folder(
    cli: CommandLine, checkpoint: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "labels.ckpt", *LABELS)
    names = tmp_path / "names.txt"
    names.write_text("0 cat\n1 dog\n2 cow\n3 hen\n4 pig\n")
    cli.export(f"ckpt={tmp_path / 'labels.ckpt'}", "weights=raw", f"out={tmp_path / 'exported'}")
    model = model_of(tmp_path / "exported", class_names=str(names))
    assert model.form.classes == ["0: cat", "1: dog", "2: cow", "3: hen", "4: pig"]
    settings = model.form.read(FIELDS | {"input": 3, "negative": "left over"})
    assert settings.negative is None
    _, result = generate(model, settings)
    assert "labels=[3]" in result.command
    assert History(tmp_path).added(result).entries[0].row[1] == "3: hen"
    assert torch.equal(result.images, sampled(cli, result.command))


@hypothesis.settings(max_examples=25, deadline=None)
@given(st.text(alphabet="\\\"'${}aé: \n,[]=", max_size=12))
def test_quoted_text_is_read_as_it_was(text: str) -> None:
    parsed = OverridesParser.create().parse_overrides([f"prompts=[{quoted(text)}]"])[0].value()
    assert isinstance(parsed, list)
    prompts = [str(item) for item in parsed]
    assert OmegaConf.to_container(OmegaConf.create({"prompts": prompts}), resolve=True) == {"prompts": [text]}


def test_previews_lead_to_the_image(model: PlaygroundModel) -> None:
    other = copy.copy(model)
    other.previews = 3
    previews, result = generate(other, PLAIN)
    assert [(g.step, g.steps) for g in previews] == [(1, 3), (2, 3), (3, 3)]
    assert [g.t for g in previews] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [g.share for g in previews] == pytest.approx([0, 1 / 3, 2 / 3])
    # Euler's last step goes to the predicted data.
    assert torch.equal(previews[-1].images, result.images)
    assert not torch.equal(previews[0].images, result.images)
    other.previews = 0
    none, same = generate(other, PLAIN)
    assert none == []
    assert torch.equal(same.images, result.images)
    assert result.evaluations == 3


@pytest.mark.slow
def test_a_single_adaptive_step_is_shown_as_well(cli: CommandLine, model: PlaygroundModel) -> None:
    settings = dataclasses.replace(PLAIN, solver="dopri5", steps=1, count=1)
    previews, result = generate(model, settings)
    shares = [preview.share for preview in previews]
    assert 3 < len(shares) <= 8
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert torch.equal(result.images, sampled(cli, result.command))


def test_previews_of_a_second_batch_show_the_first(model: PlaygroundModel) -> None:
    previews, result = generate(model, dataclasses.replace(PLAIN, count=34))
    sizes = [len(preview.images) for preview in previews]
    assert sizes == [32, 32, 32, 34, 34, 34]
    assert torch.equal(previews[-1].images[:32], result.images[:32])
    assert [g.share for g in previews] == sorted(g.share for g in previews)


def test_warming_up_takes_one_step(model: PlaygroundModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []

    def sample(settings: Settings, *_: Any) -> Result:
        asked.append(settings)
        return Result(
            settings=settings, caption="", images=torch.zeros(0), command="", evaluations=1, seconds=0.0
        )

    monkeypatch.setattr(model, "_sample", sample)
    model.warm_up()
    assert [(settings.steps, settings.count, settings.guidance) for settings in asked] == [(1, 1, "cfg")]


def test_sampling_ends_when_nobody_waits(model: PlaygroundModel) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    assert isinstance(model.pipeline.network.backbone, torch.nn.Module)
    hook = model.pipeline.network.backbone.register_forward_hook(count)
    events = model(dataclasses.replace(PLAIN, steps=250))
    assert isinstance(events, Iterator)
    next(events)
    events.close()  # type: ignore[attr-defined]
    hook.remove()
    assert 0 < calls < 250
    assert len(generate(model, PLAIN)[1].images) == 2


def test_visitors_do_not_disturb_each_other(model: PlaygroundModel) -> None:
    requests = [dataclasses.replace(PLAIN, seed=seed) for seed in range(4)]
    alone = [generate(model, settings)[1].images for settings in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda settings: generate(model, settings)[1].images, requests))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_the_fields_are_read(model: PlaygroundModel) -> None:
    assert model.form.read(FIELDS) == PLAIN
    assert model.form.read(FIELDS | {"guidance": "none", "negative": "x"}) == dataclasses.replace(
        PLAIN, guidance="none", scale=None
    )


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("input", "  ", "Prompt: it is empty; describe an image."),
        ("steps", 0, "Steps: 0 is not a whole number from 1 to 250."),
        ("steps", 2.5, "Steps: 2.5 is not a whole number from 1 to 250."),
        ("steps", 251, "Steps: 251 is not a whole number from 1 to 250."),
        ("steps", None, "Steps: an empty field is not a whole number from 1 to 250."),
        ("count", float("nan"), "Images: nan is not a whole number from 1 to 16."),
        ("seed", "seven", f"Seed: seven is not a whole number from 0 to {2**63 - 1}."),
        ("seed", str(2**63), f"Seed: {2**63} is not a whole number from 0 to {2**63 - 1}."),
        ("seed", "", f"Seed: an empty field is not a whole number from 0 to {2**63 - 1}."),
        ("steps", 10**400, f"Steps: {10**400} is not a whole number from 1 to 250."),
        ("shift", 0, "Time shift: 0 is not a number from 0.1 to 16."),
        ("shift", 1e-300, "Time shift: 1e-300 is not a number from 0.1 to 16."),
        ("shift", 17, "Time shift: 17 is not a number from 0.1 to 16."),
        ("scale", -1, "Scale: -1 is not a number from 0 to 20."),
        ("scale", 1e300, "Scale: 1e+300 is not a number from 0 to 20."),
        ("scale", float("inf"), "Scale: inf is not a number from 0 to 20."),
        ("strength", 0, "Strength: 0 is not a number from 0.05 to 1."),
        ("image", "a.png", "Image: the file did not arrive whole; choose it again."),
        ("image", "a.png\ndata:;base64,a", "Image: the file did not arrive whole; choose it again."),
        ("image", upload("a\0.png"), "Image: the file did not arrive whole; choose it again."),
        (
            "image",
            upload("a.png", bytes(LARGEST_FILE + 1)),
            "Image: a.png has 8,388,609 bytes; choose a file of at most 8,388,608.",
        ),
        ("input", "x" * 4001, "Prompt: 4001 characters are too many; write at most 4000."),
        ("negative", "x" * 4001, "Negative prompt: 4001 characters are too many; write at most 4000."),
        (
            "solver",
            ["x"],
            "Solver: ['x'] is not offered; choose one of euler, dopri5, heun, midpoint, rk4, sde.",
        ),
        ("solver", "x", "Solver: x is not offered; choose one of euler, dopri5, heun, midpoint, rk4, sde."),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_input_gets_a_sentence(model: PlaygroundModel, field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        model.form.read(FIELDS | {"image": upload(), "strength": 1, field: value})


def png_of_side(side: int) -> bytes:
    """A PNG file of some dozen bytes that claims to be large."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 2, 0, 0, 0)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<svg onload=alert(1)>", "its format is SVG, and those that are read are JPEG"),
        (png_of_side(9000), "9000x9000"),
        (png_of_side(2**16), "exceeds limit"),
        (b"\x89PNG", "its bytes are not those of an image"),
    ],
    ids=["svg", "pixels", "bomb", "torn"],
)
def test_a_file_that_is_not_an_image_of_bounded_pixels_gets_a_sentence(
    model: PlaygroundModel, data: bytes, why: str
) -> None:
    settings = dataclasses.replace(PLAIN, image=Upload(upload("a.png", data)), strength=0.5)
    with pytest.raises(ValueError, match=f"^Image: a.png cannot be read as an image: .*{why}"):
        list(model(settings))


def test_an_error_while_sampling_reaches_the_visitor(model: PlaygroundModel) -> None:
    wrong = dataclasses.replace(PLAIN, steps=0)
    with pytest.raises(ValueError, match=r"sampler\.steps=0 must be at least 1"):
        list(model(wrong))


def test_history_keeps_the_newest(model: PlaygroundModel, tmp_path: Path) -> None:
    history = History(tmp_path, most=2)
    made = [generate(model, dataclasses.replace(PLAIN, seed=seed, count=seed + 1))[1] for seed in range(3)]
    for result in made:
        history = history.added(result)
    assert [entry.result for entry in history.entries] == [made[2], made[1]]
    assert [caption for _, caption in history.gallery()] == ["3", "3", "3", "2", "2"]
    assert history.entries[0].row == [
        *("3", "a small red circle", "", "2", "3", "euler", "3", "1", "cfg", "3", "noise"),
        f"{made[2].seconds:.1f}",
    ]
    assert all(len(entry.row) == len(COLUMNS) for entry in history.entries)
    assert [history.result_of(i).settings.seed for i in range(5)] == [2, 2, 2, 1, 1]
    assert sorted(tmp_path.iterdir()) == sorted(Path(file) for file, _ in history.gallery())
    second = Image.open(history.gallery()[1][0])
    assert second.size == (128, 128)  # of images of any size
    large = made[2].images[1].repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert np.array_equal(np.array(second), large.permute(1, 2, 0).numpy())


def test_words_of_a_visitor_are_not_html() -> None:
    shown = html.status("<script>${1}</script> {{2}}", kind="error")
    assert "<script" not in shown
    assert not set("${}") & set(shown)


class Demo:
    """`rfdit demo` in this process, up to its error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def error(self, *overrides: str) -> str:
        self.patch.setattr(sys, "argv", ["demo", *overrides])
        with pytest.raises(SystemExit) as stopped:
            rfdit.commands.demo.main()
        return str(stopped.value.code)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Demo:
    monkeypatch.chdir(tmp_path)
    return Demo(monkeypatch)


def test_the_command_explains_what_is_wrong(
    demo: Demo, model: PlaygroundModel, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.error("max_stepz=2") == "error: max_stepz is not a setting; did you mean max_steps?"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = demo.error(f"ckpt={checkpoint}", f"port={port}")
    assert message.startswith(f"error: host=127.0.0.1, port={port} cannot be listened on")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "ckpt is not set; give ckpt=RUN_FOLDER" in demo.error(f"port={port}")
    assert "./none does not exist" in demo.error("ckpt=./none", f"port={port}")
    with pytest.raises(ValueError, match="max_steps=0 must be at least 1"):
        Form(classes=None, max_steps=0, max_images=1)
    with pytest.raises(ValueError, match="previews=-1 must not be negative"):
        PlaygroundModel(saved=model.saved, form=model.form, overrides=[], previews=-1)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.error(f"ckpt={checkpoint}").endswith("not installed; run pip install 'rfdit[demo]'")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page_and_leaves_no_file(tmp_path: Path, number: int) -> None:
    """Ctrl-C, and the signal with which services are ended."""
    write_checkpoint(tmp_path / "run.ckpt", *LABELS)
    (tmp_path / "tmp").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = [f"ckpt={tmp_path / 'run.ckpt'}", f"port={port}", "accelerator=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rfdit", "demo", *settings],
        env=environment() | {"TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "Ctrl-C ends it" in process.stdout.readline()  # pytest's time limit bounds it
        process.send_signal(number)
        assert process.communicate(timeout=120)[0] == "the page has ended\n"
        assert process.returncode == 130
        assert not list((tmp_path / "tmp").iterdir())
    finally:
        process.kill()
        process.wait(timeout=120)
