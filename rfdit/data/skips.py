"""Counts of samples that were skipped, shared by a loader's processes."""

import torch

REASONS = (
    "corrupt_image",
    "huge_image",
    "missing_image",
    "missing_caption",
    "missing_label",
    "broken_tar",
    "unreadable_shard",
)


class SkipCounts:
    """One row per worker in shared memory, so that no two processes write the same number."""

    def __init__(self, *, workers: int) -> None:
        self._table = torch.zeros(max(workers, 1), len(REASONS), dtype=torch.int64).share_memory_()

    def add(self, worker: int, reason: str) -> None:
        """One more sample, or tar, that worker skipped for a reason."""
        self._table[worker, REASONS.index(reason)] += 1

    def totals(self) -> dict[str, int]:
        """Reason -> count, over all workers."""
        return dict(zip(REASONS, self._table.sum(0).tolist()))
