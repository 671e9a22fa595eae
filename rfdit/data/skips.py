"""The reasons why samples are skipped."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class SkipReason(StrEnum):
    """The reason why a sample, or the rest of a shard, was left out."""

    CORRUPT_IMAGE = "corrupt_image"
    IMAGE_TOO_LARGE = "image_too_large"
    UNSUPPORTED_IMAGE = "unsupported_image"
    MISSING_IMAGE = "missing_image"
    INCOMPLETE_PAIR = "incomplete_pair"
    CORRUPT_LATENT = "corrupt_latent"
    MISSING_LATENT = "missing_latent"
    NON_FINITE_LATENT = "non_finite_latent"
    MISSING_CAPTION = "missing_caption"
    EMPTY_CAPTION = "empty_caption"
    CAPTION_NOT_TEXT = "caption_not_text"
    MISSING_LABEL = "missing_label"
    LABEL_NOT_A_CLASS = "label_not_a_class_number"
    MISSING_NUMBER = "missing_number"
    NOT_UTF8 = "not_utf8"
    CORRUPT_METADATA = "corrupt_metadata"
    SAMPLE_TOO_LARGE = "sample_too_large"
    DUPLICATE_FILE = "duplicate_file"
    SCATTERED_FILES = "scattered_files"
    LINKED_FILE = "linked_file"
    NO_EXTENSION = "no_extension"
    UNKNOWN_SUFFIX = "unknown_suffix"
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


# Advice for samples that are left out because of the way in which their tar was written.
REMEDIES = {
    SkipReason.SCATTERED_FILES: "the files of a sample must be adjacent in the tar, as tar --sort=name writes them",
    SkipReason.LINKED_FILE: "the tar has symbolic links, or hard links to files that are not earlier in it; write it "
    "with tar --dereference --hard-dereference",
    SkipReason.NO_EXTENSION: "a name needs an extension that says what the file is",
}


class SkippedSampleError(Exception):
    """A sample that cannot be used, and the reason.

    detail: what is wrong with this sample, in words.
    sample: the name of the sample, such as `000003 of /data/00000.tar`; `using` of `rfdit.data.sample` sets it.
    substitute: another sample that its source has found for it; see `SubstitutingSource`.
    """

    def __init__(self, reason: SkipReason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.sample = ""
        self.substitute: Mapping[str, str | bytes] | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.reason, self.sample, self.detail) if part)


def listed(counts: Mapping[Any, int]) -> str:
    """`1 missing_caption, 3 corrupt_image`."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()))
