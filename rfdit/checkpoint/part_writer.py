"""The writer of a sharded checkpoint's parts, with a record of each."""

from dataclasses import replace
from pathlib import Path

from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from rfdit.checkpoint.parts import Part, record_part


class PartWriter(HuggingFaceStorageWriter):
    """Flushes this rank's part to the disk, records its size and checksum, and sends the record to rank 0.

    parts: the records of all ranks by file, on rank 0 after a save.
    """

    parts: dict[str, Part]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in written}
        parts = {name: record_part(Path(self.path) / name) for name in names}
        recorded: Future[list[WriteResult]] = Future()
        recorded.set_result([replace(result, storage_data=parts) for result in written])
        return recorded

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        self.parts = {name: part for rank in results if rank for name, part in rank[0].storage_data.items()}
