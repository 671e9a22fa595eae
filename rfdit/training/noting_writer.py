"""The writer of sharded checkpoints' files, with a note of each."""

from dataclasses import replace
from pathlib import Path

from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from rfdit.training.checkpoint_parts import Part, note


class NotingWriter(HuggingFaceStorageWriter):
    """Every rank flushes its file and notes its size and checksum; the first one learns them all.

    parts: after a save, on the first rank, by file.
    """

    parts: dict[str, Part]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in written}
        parts = {name: note(Path(self.path) / name) for name in names}
        noted: Future[list[WriteResult]] = Future()
        noted.set_result([replace(result, storage_data=parts) for result in written])
        return noted

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        self.parts = {name: part for rank in results if rank for name, part in rank[0].storage_data.items()}
