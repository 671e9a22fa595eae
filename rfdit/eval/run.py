"""The pictures of an evaluation, batch by batch, in one process or on all ranks together."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.eval.evaluation import Evaluation, Rows
from rfdit.eval.inputs import Wanted
from rfdit.eval.protocol import EvalProtocol, settings_of
from rfdit.protocols import Backbone
from rfdit.randomness import SampleGenerator
from rfdit.sampler import Autoguidance, Dopri5, Guidance, GuidanceInterval, Pipeline, Sampler
from rfdit.sampler.conditions import Conditions


class EvaluationStoppedError(Exception):
    """It was not to go on. done: pictures that were made."""

    def __init__(self, done: int) -> None:
        super().__init__(f"stopped after {done} pictures")
        self.done = done


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that make pictures together, in torch.distributed's group."""

    rank: int = 0
    world: int = 1

    def any(self, mine: bool, device: torch.device) -> bool:
        """Whether it is so on some rank."""
        if self.world == 1:
            return mine
        flag = torch.tensor(int(mine), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def gather(self, rows: Rows) -> list[dict[str, Tensor]]:
        """Everybody's, in the order of ranks, on rank 0; nothing elsewhere. All have the same shapes."""
        if self.world == 1:
            return [dict(rows)]
        parts: list[dict[str, Tensor]] = [{} for _ in range(self.world)] if self.rank == 0 else []
        for name, mine in sorted(rows.items()):
            places = [torch.empty_like(mine) for _ in parts] if self.rank == 0 else None
            torch.distributed.gather(mine.contiguous(), places, dst=0)
            for part, values in zip(parts, places or ()):
                part[name] = values
        return parts


def make_pictures(
    pipeline: Pipeline, generator: SampleGenerator, inputs: Sequence[Any], conditions: Conditions
) -> UInt8[Tensor, "n 3 H W"]:
    """Pictures to be judged; raises ValueError for those that are not finite, which bytes would not show."""
    latents = pipeline.sample(generator, inputs, conditions)
    if not latents.isfinite().all():
        bad = int((~latents.flatten(1).isfinite().all(1)).sum())
        raise ValueError(
            f"{bad} of {len(latents)} pictures are NaN or infinite, so there is no number of them; the weights "
            "have diverged, or the sampler has"
        )
    return pipeline.decode(latents)


@contextmanager
def evaluating(pipeline: Pipeline) -> Iterator[None]:
    """The network in evaluation mode."""
    was_training = pipeline.network.training
    pipeline.network.eval()
    try:
        yield
    finally:
        pipeline.network.train(was_training)


def batch_rows(
    evaluation: Evaluation, pipeline: Pipeline, wanted: Wanted, numbers: Sequence[int], *, seed: int
) -> Rows:
    """What is kept of some pictures: each from the noise of (seed, its number)."""
    inputs: Any = [wanted.inputs[number] for number in numbers]
    # A batch's conditions are encoded at once: ranks that share the weights do so equally often.
    conditions = pipeline.conditions(inputs)
    images = make_pictures(pipeline, pipeline.generator(seed, numbers), inputs, conditions)
    return evaluation.rows(images, inputs)


def rows_of_all(
    evaluation: Evaluation,
    pipeline: Pipeline,
    wanted: Wanted,
    *,
    seed: int,
    ranks: Ranks,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Rows]:
    """What is kept of all pictures, batch by batch in order, on rank 0; to be exhausted on every rank.

    Batches do not depend on the number of ranks, which take them in turn. In the last round those that
    have none left make the last one again, so that all call the network equally often.

    stop: asked between rounds; if it is true on any rank, raises EvaluationStoppedError on all.
    Raises ValueError on all ranks if some cannot make or judge their pictures.
    """
    size, samples = pipeline.batch_size, len(wanted.inputs)
    batches = [range(start, min(start + size, samples)) for start in range(0, samples, size)]
    for first in range(0, len(batches), ranks.world):
        if ranks.any(stop(), pipeline.device):
            raise EvaluationStoppedError(first * size)
        mine = batches[min(first + ranks.rank, len(batches) - 1)]
        rows: Rows = {}
        failed: ValueError | None = None
        try:
            with evaluating(pipeline):
                rows = batch_rows(evaluation, pipeline, wanted, mine, seed=seed)
        except ValueError as error:  # the others would wait for this rank
            failed = error
        if ranks.any(failed is not None, pipeline.device):
            raise failed or ValueError("another rank could not make its pictures, and says why")
        padded = {name: _padded(values, size) for name, values in rows.items()}
        for batch, part in zip(batches[first:], ranks.gather(padded)):
            yield {name: values[: len(batch)] for name, values in part.items()}


def _padded(values: Tensor, rows: int) -> Tensor:
    """With as many rows more as are missing."""
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def protocol_of(
    evaluation: Evaluation,
    pipeline: Pipeline,
    wanted: Wanted,
    *,
    weights: dict[str, Any],
    seed: int,
    negative: str | None = None,
) -> EvalProtocol:
    """How the numbers of an evaluation that is prepared come about.

    weights: as `weights_settings` gives them. negative: what guidance moves away from.
    """
    sampler = pipeline.sampler
    away = {} if negative is None else {"negative": negative}
    return EvalProtocol(
        **evaluation.settings(),
        samples=evaluation.samples,
        image_size=list(pipeline.image_size),
        inputs=wanted.settings,
        sampler={
            "solver": settings_of(sampler.solver),
            "grid": settings_of(sampler.grid),
            "shift": float(sampler.shift),
        },
        steps=sampler.steps,
        evaluations=evaluations_per_picture(sampler, pipeline.latent_shape),
        guidance=settings_of(sampler.guidance) | away,
        precision="bf16" if pipeline.bf16 else "fp32",
        weights=weights,
        seed=seed,
    )


def evaluations_per_picture(sampler: Sampler, latent_shape: tuple[int, int, int]) -> float | None:
    """How often the network is evaluated for a picture; None where the solver chooses that itself."""
    if isinstance(sampler.solver, Dopri5):
        return None
    rows = 0

    def count(z_t: Latent, t: Tensor, cond: Condition) -> Latent:
        nonlocal rows
        rows += len(z_t)
        return torch.zeros_like(z_t)

    sampler = copy.copy(sampler)
    sampler.guidance = _guided_by(sampler.guidance, count)
    one = Condition(pooled=torch.zeros(1, 1))
    noise = torch.ones(1, *latent_shape)
    keys = torch.zeros(1, dtype=torch.int64)
    sampler(count, noise, one, one, generator=SampleGenerator(seed=0, keys=keys))
    return float(rows)


def _guided_by(guidance: Guidance, network: Backbone) -> Guidance:
    """The same with this network in place of autoguidance's."""
    other = copy.copy(guidance)
    if isinstance(other, GuidanceInterval):
        other.inside = _guided_by(other.inside, network)
    elif isinstance(other, Autoguidance):
        other.guide = network
    return other
