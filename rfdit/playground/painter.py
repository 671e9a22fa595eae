"""From settings to pictures, with a look at them while they are made."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.batch import Latent
from rfdit.config import build, composed
from rfdit.flow import data_from_velocity
from rfdit.playground.settings import Form, Settings
from rfdit.sample import read_asked
from rfdit.sampler import Pipeline
from rfdit.sampler.fields import Observed
from rfdit.sampling.load import load_pipeline
from rfdit.sampling.output import ranges
from rfdit.sampling.request import Picture
from rfdit.sampling.use import generator_of
from rfdit.training.checkpoint import SavedRun


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """Pictures in the making: the data that the network predicts at time t, in a step of a number of them.

    share: of the steps' way from noise to data, what is done.
    """

    images: UInt8[Tensor, "n 3 H W"]
    step: int
    steps: int
    t: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Painting:
    """Pictures, and how they were made.

    command: makes the same pictures again. evaluations: velocities computed. seconds: what it took.
    """

    settings: Settings
    images: UInt8[Tensor, "n 3 H W"]
    command: str
    evaluations: int
    seconds: float


class Stopped(Exception):
    """Nobody waits for the pictures any more."""


class Watch:
    """Shows what is in the making, `previews` times at about even shares of the way.

    around: given to `Pipeline.sample`. Raises Stopped in the midst of sampling once `stop` is set.
    """

    def __init__(
        self, *, pipeline: Pipeline, previews: int, show: Callable[[Glimpse], None], stop: Event
    ) -> None:
        self.pipeline, self.previews, self.show, self.stop = pipeline, previews, show, stop
        sampler = pipeline.sampler
        _, height, width = pipeline.latent_shape
        self._times = sampler.times(torch.device("cpu"), (height, width)).tolist()
        self._shown = 0
        self.evaluations = 0

    def around(self, guidance: Any) -> Observed:
        self._shown = 0
        return Observed(guidance=guidance, watch=self._watch)

    def _watch(self, z: Latent, v: Latent, t: Tensor) -> None:
        if self.stop.is_set():
            raise Stopped
        self.evaluations += 1
        steps, now = len(self._times) - 1, float(t)
        # The step that begins at t, or that t is within; solvers evaluate ends too.
        step = max((i for i in range(steps) if self._times[i] >= now), default=0)
        begin, end = self._times[step : step + 2]
        share = (step + (begin - now) / (begin - end)) / steps
        if share * self.previews >= self._shown and self._shown < self.previews:
            self._shown = int(share * self.previews) + 1
            predicted = data_from_velocity(z, v, t.to(z.device).expand(len(z)))
            # Pictures are decoded outside of the network's autocast.
            with torch.autocast(z.device.type, enabled=False):
                images = self.pipeline.decode(predicted)
            self.show(Glimpse(images=images, step=step + 1, steps=steps, t=now, share=share))


class Painter:
    """A model that paints what a form asks for: one painting at a time, whoever asks.

    overrides: the settings of sample.py that belong to the model. previews: glimpses of each batch.
    Pictures are those that sample.py makes with `command(settings)`, to the bit.
    """

    def __init__(self, *, saved: SavedRun, form: Form, overrides: Sequence[str], previews: int) -> None:
        if previews < 0:
            raise ValueError(f"previews={previews} must not be negative")
        self.saved, self.form, self.previews = saved, form, previews
        self._model = list(overrides)
        self._lock = Lock()
        self.pipeline = load_pipeline(saved, composed("sample", self._model))

    def command(self, settings: Settings) -> str:
        """The call of sample.py that makes the same pictures."""
        return shlex.join(["python", "sample.py", *self._model, *self.form.overrides(settings)])

    def __call__(self, settings: Settings, stop: Event | None = None) -> Iterator[Glimpse | Painting]:
        """Glimpses of the pictures, and at last the painting.

        Sampling runs beside whoever iterates, and ends when the iterator is closed or `stop` is set.
        Raises ValueError for settings with which the model cannot paint, and Stopped.
        """
        events: SimpleQueue[Glimpse | Painting | Exception] = SimpleQueue()
        stop = stop or Event()

        def work() -> None:
            try:
                with self._lock:
                    events.put(self._paint(settings, show=events.put, stop=stop))
            except Exception as error:  # raised where it is waited for
                events.put(error)

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Painting):
                    return
        finally:
            stop.set()
            worker.join()

    def _paint(self, settings: Settings, *, show: Callable[[Glimpse], None], stop: Event) -> Painting:
        begin = time.perf_counter()
        config = composed("sample", [*self._model, *self.form.overrides(settings)])
        asked = read_asked(self.saved, config)
        # That the command says what the visitor said is more than a matter of quoting well.
        if asked is None or list(asked.inputs) != [settings.given] or config["negative"] != settings.negative:
            raise ValueError(f"{settings.given!r} cannot be written on a command line; use other words.")
        pipeline = self.pipeline.with_sampler(build(config["sampler"]))
        pictures = asked.request().pictures
        conditions = pipeline.conditions([p.given for p in pictures], negative=settings.negative)
        done: list[Tensor] = []

        def show_all(glimpse: Glimpse) -> None:
            images = torch.cat([*done, glimpse.images])
            before = len(images) - len(glimpse.images)
            share = (before + len(glimpse.images) * glimpse.share) / len(pictures)
            show(replace(glimpse, images=images, share=share))

        watch = Watch(pipeline=pipeline, previews=self.previews, show=show_all, stop=stop)
        for batch in ranges(len(pictures), pipeline.batch_size):  # as sample.py divides them
            chosen: list[Picture] = [pictures[i] for i in batch]
            latents = pipeline.sample(
                generator_of(pipeline, chosen), [p.given for p in chosen], conditions, around=watch.around
            )
            done.append(pipeline.decode(latents))
        return Painting(
            settings=settings,
            images=torch.cat(done),
            command=self.command(settings),
            evaluations=watch.evaluations,
            seconds=time.perf_counter() - begin,
        )
