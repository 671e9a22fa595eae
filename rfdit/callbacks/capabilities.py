"""Protocols by which callbacks and loggers are found, whatever their classes."""

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import lightning as L

from rfdit.data.stream.description import DataDescription
from rfdit.eval.evaluation import Evaluation
from rfdit.training.module import FlowModule

Capability = TypeVar("Capability")


@runtime_checkable
class ChecksRun(Protocol):
    """Compares its settings with the run before training."""

    def check(self, trainer: L.Trainer, module: FlowModule, first_step: int) -> None:
        """Raises ValueError if they do not fit. first_step: 0, or the step of the checkpoint that is resumed."""
        ...


@runtime_checkable
class StopsOnSignal(Protocol):
    """Ends the run on a signal; `stopped_by` is None until one arrives."""

    stopped_by: signal.Signals | None


@runtime_checkable
class LimitsTime(Protocol):
    """Ends the run after a time; `time_is_up` from the step on that is the last one for this reason."""

    time_is_up: bool

    @property
    def remaining(self) -> float:
        """Seconds until then."""
        ...


@runtime_checkable
class EvaluatesImages(Protocol):
    """Measures generated images; `evaluation` is None if it is switched off."""

    evaluation: Evaluation | None


@runtime_checkable
class TakesEvaluations(Protocol):
    """Is told what every evaluation has found."""

    def take_evaluation(self, values: Mapping[str, float]) -> None:
        """The values by logged name, on all ranks, in the middle of the end of a step."""
        ...


@runtime_checkable
class TimesTraining(Protocol):
    """Measures the speed of training."""

    def leave_out(self, seconds: float) -> None:
        """Leaves out the last seconds, in which something other than training went on."""
        ...


@runtime_checkable
class SavesState(Protocol):
    """Writes the state of the run to `last_path`."""

    @property
    def last_path(self) -> Path: ...

    def save_last(self, trainer: L.Trainer) -> None: ...


@runtime_checkable
class RefusesSteps(Protocol):
    """Decides on the device which steps are not taken, those with a non-finite gradient among them."""

    refuses_non_finite: bool


@runtime_checkable
class CountsSkips(Protocol):
    """A data module that counts the samples that were left out when its data was opened."""

    def skipped(self) -> dict[str, int]:
        """Their number by reason, the same on all ranks."""
        ...


@runtime_checkable
class DescribesData(Protocol):
    """A data module that has its data in numbers."""

    def describe(self) -> DataDescription: ...


@runtime_checkable
class MonitorsMetric(Protocol):
    """Keeps the checkpoint with the best value of a logged metric; `monitor` is None if it keeps none."""

    monitor: str | None


@runtime_checkable
class WritesDurably(Protocol):
    """A logger whose rows a resumed run goes on with."""

    def sync(self) -> None:
        """Write what was logged so that it outlasts a loss of power."""
        ...


def flow_module(module: L.LightningModule) -> FlowModule:
    """The module that a callback of rfdit is given, with its own type in place of Lightning's."""
    assert isinstance(module, FlowModule)
    return module


def callbacks_of(trainer: L.Trainer, capability: type[Capability]) -> Iterator[Capability]:
    """The callbacks of a trainer that have a capability."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (callback for callback in callbacks if isinstance(callback, capability))


def stopping_signal(trainer: L.Trainer) -> signal.Signals | None:
    """The signal that asked the run to stop; None without one."""
    return next(filter(None, (each.stopped_by for each in callbacks_of(trainer, StopsOnSignal))), None)


def time_is_up(trainer: L.Trainer) -> bool:
    """True if a time limit ends the run with this step."""
    return trainer.should_stop and any(limit.time_is_up for limit in callbacks_of(trainer, LimitsTime))


def at_last_step(trainer: L.Trainer) -> bool:
    """True at the end of the last step, of all or before a time limit; not after a signal, which is urgent."""
    return trainer.global_step == trainer.max_steps or time_is_up(trainer)


def logged_step(trainer: L.Trainer, every_n_steps: int) -> bool:
    """True at the end of a step that has a row in the log: every so many steps, and the last."""
    return trainer.global_step % every_n_steps == 0 or at_last_step(trainer)
