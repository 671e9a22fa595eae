"""Samples that cannot be used are skipped, and every skip is counted by its reason."""

from collections.abc import Mapping
from enum import StrEnum

import torch


class SkipReason(StrEnum):
    """Why a sample, or the rest of a shard, was left out."""

    CORRUPT_IMAGE = "corrupt_image"
    IMAGE_TOO_LARGE = "image_too_large"
    MISSING_IMAGE = "missing_image"
    CORRUPT_LATENT = "corrupt_latent"
    MISSING_LATENT = "missing_latent"
    NON_FINITE_LATENT = "non_finite_latent"
    MISSING_CAPTION = "missing_caption"
    EMPTY_CAPTION = "empty_caption"
    MISSING_LABEL = "missing_label"
    CORRUPT_METADATA = "corrupt_metadata"
    DUPLICATE_FILE = "duplicate_file"
    DAMAGED_TAR = "damaged_tar"
    TRUNCATED_TAR = "truncated_tar"
    UNREADABLE_SHARD = "unreadable_shard"
    FETCH_REFUSED = "fetch_refused"
    FETCH_CONNECTION = "fetch_connection"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_NOT_FOUND = "fetch_not_found"
    FETCH_FORBIDDEN = "fetch_forbidden"
    FETCH_TOO_MANY_REQUESTS = "fetch_too_many_requests"
    FETCH_SERVER_ERROR = "fetch_server_error"
    FETCH_REDIRECTS = "fetch_redirects"
    FETCH_NOT_AN_IMAGE = "fetch_not_an_image"
    FETCH_OPTED_OUT = "fetch_opted_out"
    FETCH_TRUNCATED = "fetch_truncated"
    FETCH_TOO_LARGE = "fetch_too_large"
    FETCH_HASH = "fetch_hash"


class SkippedSampleError(Exception):
    """A sample that cannot be used, and why.

    substitute: another sample that its source has found in its place; see `SubstitutingSource`.
    """

    def __init__(self, reason: SkipReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.substitute: Mapping[str, str | bytes] | None = None


class SkipCounts:
    """Counts by reason in memory that DataLoader workers and the main process share.

    workers: number of columns; each worker writes to its own, so that no lock is needed.
    """

    def __init__(self, *, workers: int) -> None:
        self._counts = torch.zeros(len(SkipReason), max(workers, 1), dtype=torch.int64).share_memory_()

    def reset(self, *, worker: int) -> None:
        """Forgets what a worker counted."""
        self._counts[:, worker] = 0

    def add(self, reason: SkipReason, *, worker: int) -> None:
        """One more."""
        self._counts[list(SkipReason).index(reason), worker] += 1

    def total(self) -> dict[str, int]:
        """Every reason that occurred, with its count over all workers."""
        counts: list[int] = self._counts.sum(dim=1).tolist()
        return {str(reason): n for reason, n in zip(SkipReason, counts, strict=True) if n}
