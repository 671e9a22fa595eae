"""The loop: pieces, divided among processes, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampling.output import Job, Made, Output
from rfdit.sampling.place import Place
from rfdit.sampling.progress import SampleProgress


def produce(
    job: Job,
    output: Output,
    pipelines: Mapping[float | None, Pipeline],
    conditions: Conditions,
    place: Place,
) -> str | None:
    """Makes what is missing of a job; in the first process it returns where the pictures are.

    pipelines: by guidance scale; None is the sampler's own.

    Which pictures are in a batch follows from the job alone, as kernels, and rounding with them, depend
    on a batch's size: so any number of processes, stopped and started at will, makes the same files.
    """
    pieces = output.pieces(job)
    missing = [number for number in range(len(pieces)) if not output.finished(job, number)]
    place.wait()  # nobody writes before everybody has seen what is missing
    mine = missing[place.rank :: place.world]
    total = sum(len(pieces[number]) for number in mine)
    with SampleProgress(total=total, world=place.world, shown=place.rank == 0) as progress:
        for number in mine:
            output.write(job, number, _made(job, pieces[number], pipelines, conditions, progress))
    place.wait()
    return output.close(job) if place.rank == 0 else None


def _made(
    job: Job,
    piece: Sequence[int],
    pipelines: Mapping[float | None, Pipeline],
    conditions: Conditions,
    progress: SampleProgress,
) -> Iterator[Made]:
    """The pictures of a piece, in its order."""
    pictures = job.request.pictures
    for start in range(0, len(piece), job.batch_size):
        batch = piece[start : start + job.batch_size]
        for (scale, *_), group in groupby(batch, key=lambda index: pictures[index].kind):
            indices = list(group)
            images = job.use(pipelines[scale], [pictures[i] for i in indices], conditions)
            progress.advance(len(indices))
            for index, image in zip(indices, images, strict=True):
                yield Made(index, pictures[index], image)
