"""`sample.py eval=...`: an evaluation of a checkpoint, which goes on after a kill, on any number of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from rfdit.config import build
from rfdit.eval.evaluation import Evaluation
from rfdit.eval.protocol import weights_settings
from rfdit.eval.records import EvaluationRecord, append_record
from rfdit.eval.run import make_pictures, protocol_of
from rfdit.frozen import state_digest
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampling.eval_files import EvaluationFiles
from rfdit.sampling.output import Job
from rfdit.sampling.request import Picture, Request
from rfdit.sampling.use import Pictures, generator_of
from rfdit.training.checkpoint import SavedRun


class JudgedPictures(Pictures):
    """Pictures from noise, of which none may be NaN."""

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        given = [picture.given for picture in pictures]
        return make_pictures(pipeline, generator_of(pipeline, pictures), given, conditions)


@dataclass(frozen=True)
class CheckpointEvaluation:
    """An evaluation as a job of pictures. folder: where its record goes."""

    saved: SavedRun
    job: Job
    output: EvaluationFiles
    folder: Path

    @classmethod
    def of(cls, config: dict[str, Any], saved: SavedRun, pipeline: Pipeline) -> "CheckpointEvaluation":
        """As `sample.yaml` asks for it; raises ValueError for one that does not fit the model."""
        evaluation: Evaluation = build(config["eval"])
        seed = config["seed"]
        wanted = evaluation.wanted(pipeline.network.conditioner, seed=seed)
        evaluation.prepare(pipeline.image_size, pipeline.device)
        weights = weights_settings(saved.config, config["weights"])
        protocol = protocol_of(
            evaluation, pipeline, wanted, weights=weights, seed=seed, negative=config["negative"]
        )
        folder = record_folder(saved.path)
        name = f"{evaluation.name.replace(' ', '_')}_step_{saved.step:08d}_{protocol.hash}"
        inputs: list[Any] = list(wanted.inputs)
        pictures = [Picture(given, str(given), seed, i) for i, given in enumerate(inputs)]
        job = Job(
            folder=folder / "evaluations" / name,
            request=Request(pictures=pictures),
            use=JudgedPictures(),
            settings={
                "step": saved.step,
                "weights_sha256": state_digest(saved.weights(config["weights"])),
                "batch_size": pipeline.batch_size,
                "device": pipeline.device.type,
            },
            batch_size=pipeline.batch_size,
        )
        output = EvaluationFiles(evaluation=evaluation, protocol=protocol, device=pipeline.device)
        return cls(saved, job, output, folder)

    @property
    def inputs(self) -> list[str | int]:
        """What each picture shows."""
        return [picture.given for picture in self.job.request.pictures]

    def finish(self) -> str:
        """The numbers, once all pictures are made; records them and removes what was kept of the pictures."""
        values, seconds = self.output.measure(self.job)
        protocol = self.output.protocol
        record = EvaluationRecord(
            name=self.output.evaluation.name,
            step=self.saved.step,
            weights=protocol.weights["name"],
            values=values,
            protocol=protocol,
            seconds=seconds,
        )
        append_record(self.folder, record)
        self.output.remove(self.job)
        return f"{protocol}\n{record.line}"


def record_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in (checkpoints/last.ckpt, posthoc/NAME.ckpt), else its own."""
    run = checkpoint.parent.parent
    inside = checkpoint.parent.name == "checkpoints" or (run / "config.yaml").is_file()
    return run if inside else checkpoint.parent
