"""Generates the images of an evaluation, batch by batch, in one process or on all ranks together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rfdit.counted import counted
from rfdit.eval.evaluation import Evaluation, Rows
from rfdit.eval.inputs import ChosenInputs
from rfdit.processes.rank import Process
from rfdit.sampler import Pipeline


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before its end. done: number of images generated."""

    def __init__(self, done: int) -> None:
        super().__init__(f"stopped after {counted(done, 'image')}")
        self.done = done


def generate_rows(
    evaluation: Evaluation,
    pipeline: Pipeline,
    chosen: ChosenInputs,
    *,
    seed: int,
    process: Process,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Rows]:
    """The rows of all images, batch by batch in order, on rank 0; to be exhausted on every rank.

    Image i starts from the noise of (seed, i). Batches do not depend on the number of ranks, which take
    them in turn. In the last round, ranks that have none left generate the last one again, so that all
    call the network equally often.

    process: this one, in torch.distributed's group if there are others.
    stop: called between rounds; if it is true on any rank, raises EvaluationStoppedError on all.
    Raises ValueError on all ranks if one cannot generate or measure its images.
    """
    size, samples = pipeline.batch_size, len(chosen.inputs)
    batches = [range(start, min(start + size, samples)) for start in range(0, samples, size)]
    for first in range(0, len(batches), process.world_size):
        if process.any(stop(), pipeline.device):
            raise EvaluationStoppedError(first * size)
        own = batches[min(first + process.rank, len(batches) - 1)]
        rows: Rows = {}
        failed: ValueError | None = None
        try:
            rows = _rows_of_batch(evaluation, pipeline, [chosen.inputs[i] for i in own], own, seed=seed)
        except ValueError as error:  # the other ranks would wait for this one
            failed = error
        if process.any(failed is not None, pipeline.device):
            raise failed or ValueError("another rank could not generate its images; see its error")
        padded = {name: _padded(values, size) for name, values in rows.items()}
        for batch, gathered in zip(batches[first:], _gathered(padded, process)):
            yield {name: values[: len(batch)] for name, values in gathered.items()}


def _rows_of_batch(
    evaluation: Evaluation, pipeline: Pipeline, inputs: Any, keys: Sequence[int], *, seed: int
) -> Rows:
    with pipeline.evaluating():
        # A batch's conditions are encoded at once: ranks that share the weights do so equally often.
        conditions = pipeline.conditions(inputs)
        latents = pipeline.sample(pipeline.generator(seed, keys), inputs, conditions)
        return evaluation.rows(pipeline.decode(latents), inputs)


def _padded(values: Tensor, rows: int) -> Tensor:
    """`values` with zeros up to this number of rows."""
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def _gathered(rows: Rows, process: Process) -> list[dict[str, Tensor]]:
    """The rows of all ranks in their order on rank 0, nothing elsewhere. All have the same shapes."""
    if process.world_size == 1:
        return [dict(rows)]
    gathered: list[dict[str, Tensor]] = [{} for _ in range(process.world_size)] if process.rank == 0 else []
    for name, own in sorted(rows.items()):
        values = [torch.empty_like(own) for _ in gathered] if process.rank == 0 else None
        torch.distributed.gather(own.contiguous(), values, dst=0)
        for each, received in zip(gathered, values or ()):
            each[name] = received
    return gathered
