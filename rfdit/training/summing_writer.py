"""The writer of sharded checkpoints' files, with their checksums."""

from dataclasses import replace
from pathlib import Path

from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from rfdit.checksum import crc32_of


class SummingWriter(HuggingFaceStorageWriter):
    """Every rank sums up the file that it has written, and the first one learns all sums."""

    sums: dict[str, int]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in written}
        sums = {name: crc32_of(Path(self.path) / name) for name in names}
        summed: Future[list[WriteResult]] = Future()
        summed.set_result([replace(result, storage_data=sums) for result in written])
        return summed

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        self.sums = {name: crc for rank in results if rank for name, crc in rank[0].storage_data.items()}
