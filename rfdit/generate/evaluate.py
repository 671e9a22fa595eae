"""`sample.py eval=...`: an evaluation of a checkpoint on any number of devices, resumable after a kill."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.eval.evaluation import Evaluation
from rfdit.eval.protocol_settings import protocol_of, weights_settings
from rfdit.eval.records import EvaluationRecord, append_record
from rfdit.generate.outputs.eval_files import EvaluationFiles
from rfdit.generate.outputs.output import Job
from rfdit.generate.produce import Task
from rfdit.generate.request import ContactSheet, ImageSpec
from rfdit.generate.uses.use import FromNoise
from rfdit.pretrained.frozen import state_digest
from rfdit.sampler import Pipeline


@dataclass(frozen=True)
class CheckpointEvaluation:
    """An evaluation whose images are a task; folder: where its record is appended."""

    saved: SavedRun
    task: Task
    output: EvaluationFiles
    folder: Path

    @classmethod
    def of(
        cls,
        evaluation: Evaluation,
        saved: SavedRun,
        pipeline: Pipeline,
        *,
        weights: str,
        seed: int,
        negative: str | None,
    ) -> "CheckpointEvaluation":
        """An evaluation of a pipeline; weights: the name of its weights.

        Raises ValueError for an evaluation that does not fit the model.
        """
        chosen = evaluation.choose_inputs(pipeline.network.conditioner, seed=seed)
        evaluation.prepare(pipeline.image_size, pipeline.device)
        protocol = protocol_of(
            evaluation,
            pipeline,
            chosen,
            weights=weights_settings(saved.config, weights),
            seed=seed,
            negative=negative,
        )
        folder = record_folder(saved.path)
        name = f"{evaluation.name.replace(' ', '_')}_step_{saved.step:08d}_{protocol.hash}"
        inputs: list[Any] = list(chosen.inputs)
        job = Job(
            folder=folder / "evaluations" / name,
            sheet=ContactSheet(specs=[ImageSpec(x, str(x), seed, i) for i, x in enumerate(inputs)]),
            use=FromNoise(),
            settings={
                "step": saved.step,
                "weights_sha256": state_digest(saved.weights(weights)),
                "batch_size": pipeline.batch_size,
                "device": pipeline.device.type,
            },
            batch_size=pipeline.batch_size,
            setting="eval",
        )
        output = EvaluationFiles(evaluation=evaluation, protocol=protocol, device=pipeline.device)
        conditions = pipeline.conditions(inputs, negative=negative)
        return cls(saved, Task(job, output, {None: pipeline}, conditions), output, folder)

    def finish(self) -> str:
        """Measures, records and describes the values, once all images are generated; removes the kept rows."""
        values, seconds = self.output.measure(self.task.job)
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
        self.output.remove(self.task.job)
        return f"{protocol}\n{record.line}"


def record_folder(checkpoint: Path) -> Path:
    """The run folder of a checkpoint (checkpoints/last.ckpt, posthoc/NAME.ckpt), else the checkpoint's own folder."""
    run = checkpoint.parent.parent
    inside = checkpoint.parent.name == "checkpoints" or (run / "config.yaml").is_file()
    return run if inside else checkpoint.parent
