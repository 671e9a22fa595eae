"""One sample out of its piece of a tar."""

import io
import tarfile
from collections.abc import Iterator
from typing import cast

from webdataset.tariterators import group_by_keys

from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason


def parse_sample(data: bytes) -> RawSample:
    """The sample whose files these bytes hold, as webdataset groups them.

    Raises SkippedSampleError if there is none, or it has a file twice.
    """
    try:
        found = list(group_by_keys(_files(data)))
    except ValueError as error:
        raise SkippedSampleError(SkipReason.DUPLICATE_FILE, str(error)) from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SkippedSampleError(SkipReason.DAMAGED_TAR, str(error)) from error
    if not found:
        raise SkippedSampleError(SkipReason.DAMAGED_TAR)
    return cast(RawSample, {name: value for name, value in found[0].items() if name != "__url__"})


def _files(data: bytes) -> Iterator[dict[str, object]]:
    """What webdataset's own reader of tars gives, without its copies: all bytes are here already."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.isreg():
                content = data[member.offset_data : member.offset_data + member.size]
                if len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield {"fname": member.name, "data": content, "__url__": ""}
