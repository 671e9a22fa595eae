"""The model behind the page: from settings to images, with previews while they are sampled."""

import copy
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.batch import Latent
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.conditioning import truncation
from rfdit.config.build import build, composed
from rfdit.data.decode import decode_image
from rfdit.data.skips import SkippedSampleError
from rfdit.flow import data_from_velocity
from rfdit.generate.load import PipelineSettings, load_pipeline
from rfdit.generate.outputs.output import ranges
from rfdit.generate.request import read_request
from rfdit.generate.uses.from_image import vary
from rfdit.generate.uses.use import FromNoise, inputs_of
from rfdit.images import UInt8Images
from rfdit.playground.form import Choice, Form, Settings, Upload
from rfdit.sampler import Sampler
from rfdit.sampler.fields import Observed

UNGUIDED = {"_target_": "rfdit.sampler.NoGuidance"}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The data that the network predicts at time t of a step; share: the finished fraction of the way to data."""

    images: UInt8[Tensor, "n 3 H W"]
    step: int
    steps: int
    t: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """Images; command: samples the same ones. evaluations: evaluations of the velocity.

    caption: the prompt, or the class's number and name.
    note: a sentence about the end of a prompt that is cut off, if one is.
    """

    settings: Settings
    caption: str
    images: UInt8[Tensor, "n 3 H W"]
    command: str
    evaluations: int
    seconds: float
    note: str | None = None


class GenerationStopped(Exception):
    """Raised in the middle of sampling when it is stopped."""


class PlaygroundModel:
    """A model that serves one visitor at a time; its images are those of `command(settings)`, to the bit.

    overrides: the settings of sample.py that belong to the model. previews: number of images of each batch
        that are previewed.
    """

    def __init__(self, *, saved: SavedRun, form: Form, overrides: Sequence[str], previews: int) -> None:
        if previews < 0:
            raise ValueError(f"previews={previews} must not be negative")
        self.saved, self.form, self.previews = saved, form, previews
        self._overrides = list(overrides)
        self._lock = Lock()
        settings = PipelineSettings.from_config(composed("sample", self._overrides))
        self.pipeline = load_pipeline(saved, settings)
        self._offer_what_serves()

    def _offer_what_serves(self) -> None:
        """Leave out of the form the solvers and guidances that are for networks of another kind."""
        network = self.pipeline.network
        null = network.conditioner.null(device=self.pipeline.device)

        def serves(choice: Choice, **changed: Any) -> bool:
            try:
                sampler: Sampler = build(choice.node | changed)
                sampler.check(network.backbone)
                sampler.guidance(network.backbone, null, null)  # makes a field, and evaluates nothing
            except ValueError:
                return False
            return True

        form = self.form
        form.solvers = {
            name: solver for name, solver in form.solvers.items() if serves(solver, guidance=UNGUIDED)
        }
        first = next(iter(form.solvers.values()))
        form.guidances = {
            name: guidance
            for name, guidance in form.guidances.items()
            if serves(first, guidance=guidance.node)
        }

    @property
    def title(self) -> str:
        """The model in a line."""
        height, width = self.pipeline.image_size
        arithmetic = "bf16" if self.pipeline.bf16 else "fp32"
        return (
            f"{self.saved.path}, step {self.saved.step}: {width} x {height} pixels, "
            f"on {self.pipeline.device.type} in {arithmetic}"
        )

    def warm_up(self) -> None:
        """Takes one step, so that the first visitor does not wait for what happens once."""
        for _ in self(self.form.first()):
            pass

    def command(self, settings: Settings) -> str:
        """The call of sample.py that samples the same images."""
        return shlex.join(["python", "sample.py", *self._overrides, *self.form.overrides(settings)])

    def __call__(self, settings: Settings, stop: Event | None = None) -> Iterator[Preview | Result]:
        """Previews of the images, and at last the result.

        Sampling runs in a thread, and ends when the iterator is closed or `stop` is set.
        Raises ValueError for settings that the model cannot sample with, and GenerationStopped.
        """
        events: SimpleQueue[Preview | Result | Exception] = SimpleQueue()
        stop = stop or Event()

        def work() -> None:
            try:
                with self._lock:
                    events.put(self._sample(settings, events.put, stop))
            except Exception as error:  # raised again below
                events.put(error)

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Result):
                    return
        finally:
            stop.set()
            worker.join()

    def _sample(self, settings: Settings, show: Callable[[Preview], None], stop: Event) -> Result:
        begin = time.perf_counter()
        config = composed("sample", [*self._overrides, *self.form.overrides(settings)])
        request = read_request(self.saved, config)
        # Quoting is not trusted to pass every text on unchanged.
        passed = request and [*request.inputs, config["negative"], config["use"].get("image")]
        file = settings.image and settings.image.name
        if request is None or passed != [settings.input, settings.negative, file]:
            raise ValueError(f"{settings.input!r} cannot be written on a command line; use other words.")
        pipeline = self.pipeline.with_sampler(build(config["sampler"]))
        specs = request.sheet().specs
        conditions = pipeline.conditions(inputs_of(specs), negative=settings.negative)
        _, *size = pipeline.latent_shape
        start = settings.strength or 1.0
        times = (start * pipeline.sampler.times(torch.device("cpu"), (size[0], size[1]))).tolist()
        z0 = None
        if settings.image:
            z0 = pipeline.encode(_decoded(settings.image, pipeline.image_size)[None])
        finished: list[Tensor] = []
        evaluations = shown = 0

        def watch(z: Latent, v: Latent, t: Tensor) -> None:
            nonlocal evaluations, shown
            if stop.is_set():
                raise GenerationStopped
            evaluations += 1
            step, share = _progress(times, float(t))
            if shown >= self.previews or share * self.previews < shown:
                return
            shown = int(share * self.previews) + 1
            predicted = data_from_velocity(z, v, t.to(z.device).expand(len(z)))
            with torch.autocast(z.device.type, enabled=False):  # which is on for the network alone
                images = torch.cat([*finished, pipeline.decode(predicted)])
            share = (len(images) - len(z) * (1 - share)) / len(specs)
            show(Preview(images=images, step=step + 1, steps=len(times) - 1, t=float(t), share=share))

        sampler = copy.copy(pipeline.sampler)
        sampler.guidance = Observed(guidance=sampler.guidance, watch=watch)
        pipeline = pipeline.with_sampler(sampler)
        for batch in ranges(len(specs), pipeline.batch_size):  # as sample.py divides them
            chosen, shown = [specs[i] for i in batch], 0
            if z0 is None:
                finished.append(FromNoise()(pipeline, chosen, conditions))
            else:
                finished.append(vary(pipeline, chosen, conditions, z0=z0, strength=start))
        return Result(
            settings=settings,
            caption=specs[0].caption,
            images=torch.cat(finished),
            command=self.command(settings),
            evaluations=evaluations,
            seconds=time.perf_counter() - begin,
            note=truncation(pipeline.network.conditioner, [settings.input, settings.negative]),
        )


def _decoded(upload: Upload, size: tuple[int, int]) -> UInt8Images:
    """A visitor's image, (3, H, W), as `use=image_to_image` reads its file. Raises ValueError for another file."""
    try:
        return decode_image(upload.data, size)
    except SkippedSampleError as error:
        what = error.detail or error.reason
        raise ValueError(f"Image: {upload.name} cannot be read as an image: {what}") from None


def _progress(times: Sequence[float], t: float) -> tuple[int, float]:
    """The step that begins at t or contains it (solvers evaluate ends too), and the share of the way that is done."""
    steps = len(times) - 1
    step = max((i for i in range(steps) if times[i] >= t), default=0)
    begin, end = times[step : step + 2]
    return step, (step + (begin - t) / (begin - end)) / steps
