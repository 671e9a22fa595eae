"""The loop that generates images: pieces, divided among processes, batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from rfdit.checkpoint.resume import encoder_settings
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.data.latents.manifest import arithmetic_of, weights_of
from rfdit.generate.guide import find_guide
from rfdit.generate.load import with_scales
from rfdit.generate.outputs.output import GeneratedImage, Job, Output, TakesLatents
from rfdit.generate.request import SampleRequest, Specs
from rfdit.generate.uses.use import GivesLatents, Use, inputs_of
from rfdit.pretrained.frozen import state_digest, weights_digest
from rfdit.processes.rank import Process
from rfdit.progress import ProgressDisplay
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.storage.checksum import json_digest


@dataclass(frozen=True)
class Task:
    """Images to generate, with all that is needed; pipelines: by guidance scale, None is the sampler's own."""

    job: Job
    output: Output
    pipelines: Mapping[float | None, Pipeline]
    conditions: Conditions

    @property
    def evaluations(self) -> int:
        """Evaluations of the velocity for the last batch, at the scale that took the most."""
        return max(pipeline.sampler.evaluations for pipeline in self.pipelines.values())


def sample_task(
    saved: SavedRun,
    pipeline: Pipeline,
    request: SampleRequest,
    *,
    use: Use,
    output: Output,
    folder: Path,
    weights: str,
    negative: str | None,
    config: dict[str, Any],
    command: str = "",
) -> Task:
    """The images of a request.

    weights: the name of the pipeline's. config: the command's settings, for the record. command: as of `Job`.
    Raises ValueError for images that this sampler cannot generate.
    """
    sheet = use.sheet(request)
    sheet.check_solver(pipeline.sampler.solver)
    if isinstance(output, TakesLatents):
        output.check_pairs(use, request, pipeline.sampler.solver)
    guide = find_guide(pipeline.sampler.guidance)
    if guide is not None and negative is not None:
        raise ValueError(
            f"negative={negative} has no effect with guidance=autoguidance, which moves away from what its guide "
            "predicts for the prompt; use guidance=cfg"
        )
    settings = {
        "checkpoint": str(saved.path),
        "step": saved.step,
        # As they were trained; sampling in bf16 rounds its copy.
        "weights_sha256": state_digest(saved.weights(weights)),
        **({} if guide is None or guide.network is None else {"guide_sha256": weights_digest(guide.network)}),
        "inputs_sha256": json_digest(list(request.inputs), digits=64),
        "image_size": list(pipeline.image_size),
        "arithmetic": f"{pipeline.device.type} {'bf16' if pipeline.bf16 else 'fp32'}",
        "config": config,
        **(_space_of(saved, pipeline) if isinstance(output, TakesLatents) else {}),
    }
    return Task(
        job=Job(
            folder=folder,
            sheet=sheet,
            use=use,
            settings=settings,
            batch_size=pipeline.batch_size,
            command=command,
        ),
        output=output,
        pipelines=with_scales(pipeline, request.scales),
        conditions=pipeline.conditions(inputs_of(sheet.specs), negative=negative),
    )


def _space_of(saved: SavedRun, pipeline: Pipeline) -> dict[str, Any]:
    """The settings that latents depend on besides: their contract, and the autoencoder that they belong to."""
    node, autoencoder = saved.config["autoencoder"], pipeline.autoencoder
    return {
        "latents": autoencoder.contract.as_dict(),
        "autoencoder": encoder_settings(node),
        "autoencoder_weights": weights_of("autoencoder", node, autoencoder),
        "autoencoder_arithmetic": arithmetic_of(pipeline.device, autoencoder=autoencoder),
    }


def produce(task: Task, process: Process) -> str | None:
    """Generates the missing images of a task; on rank 0 it returns a sentence that says where they are.

    The job alone determines the images of each batch, since kernels, and rounding with them, depend on a
    batch's size. Any number of processes, stopped and started at will, thus writes the same files.
    """
    job, output = task.job, task.output
    pieces = output.pieces(job)
    share = slice(process.rank, None, process.world_size)
    # Checking takes time, and no process may write before all have seen what is missing.
    missing = sorted(process.joined(output.missing(job, range(len(pieces))[share])))
    mine = missing[share]
    total = sum(len(pieces[number]) for number in mine)
    name = "sampling" if process.world_size == 1 else f"sampling, 1 of {process.world_size} devices"
    with ProgressDisplay(name, total=total, unit="images", shown=process.rank == 0) as progress:
        for number in mine:
            output.write(job, number, _generate(task, pieces[number], progress))
    process.barrier()
    return output.close(job) if process.rank == 0 else None


def _generate(task: Task, piece: Sequence[int], progress: ProgressDisplay) -> Iterator[GeneratedImage]:
    """The images of a piece, in its order."""
    job, specs = task.job, task.job.sheet.specs
    make: Callable[[Pipeline, Specs, Conditions], Tensor] = job.use
    if isinstance(task.output, TakesLatents):
        assert isinstance(job.use, GivesLatents)
        make = job.use.latents
    for start in range(0, len(piece), job.batch_size):
        batch = piece[start : start + job.batch_size]
        for (scale, *_), group in groupby(batch, key=lambda index: specs[index].kind):
            indices = list(group)
            images = make(task.pipelines[scale], [specs[i] for i in indices], task.conditions)
            generated = progress.completed + len(indices)
            progress.update(generated, f"{generated / progress.elapsed:.2f}/s")
            for index, image in zip(indices, images, strict=True):
                yield GeneratedImage(index, specs[index], image)
