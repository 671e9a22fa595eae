"""Sequential reading of tar shards, whatever shape they are in."""

from collections.abc import Callable, Iterator
from typing import cast

from webdataset import tariterators

from rfdit.data.decode import RawSample
from rfdit.data.skips import SkipReason


def read_shard(shard: str, on_skip: Callable[[SkipReason], None]) -> Iterator[RawSample]:
    """The samples of one shard in its order, undecoded.

    shard: a file, a URL, or a `pipe:` command, opened by webdataset.
    on_skip: told once if the shard cannot be opened or breaks off (its readable samples still come),
        and for every file that occurs twice in a sample. A tar that ends between two files looks
        complete to Python's tarfile, so that is not told.
    """
    begun, broken = False, False

    def unreadable(error: Exception) -> bool:
        nonlocal broken
        if not broken:
            on_skip(SkipReason.TRUNCATED_TAR if begun else SkipReason.UNREADABLE_SHARD)
        broken = True
        return False

    def duplicate(error: Exception) -> bool:
        on_skip(SkipReason.DUPLICATE_FILE)
        return True

    def opened_files() -> Iterator[dict[str, object]]:
        nonlocal begun
        streams = tariterators.url_opener([{"url": shard}], handler=unreadable)
        for file in tariterators.tar_file_expander(streams, handler=unreadable):
            begun = begun or bool(file)  # an empty one marks the shard's end
            yield file

    yield from cast(Iterator[RawSample], tariterators.group_by_keys(opened_files(), handler=duplicate))
