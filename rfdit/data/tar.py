"""One sample out of its piece of a tar."""

import io
import tarfile
from typing import cast

from webdataset import tariterators

from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason


def parse_sample(data: bytes) -> RawSample:
    """The sample whose files these bytes hold, as webdataset groups them.

    Raises SkippedSampleError if there is none, or it has a file twice.
    """
    try:
        files = list(tariterators.tar_file_iterator(cast(tarfile.TarFile, io.BytesIO(data))))
        found = list(tariterators.group_by_keys(file | {"__url__": ""} for file in files))
    except ValueError as error:
        raise SkippedSampleError(SkipReason.DUPLICATE_FILE, str(error)) from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SkippedSampleError(SkipReason.DAMAGED_TAR, str(error)) from error
    if not found:
        raise SkippedSampleError(SkipReason.DAMAGED_TAR)
    return cast(RawSample, {name: data for name, data in found[0].items() if name != "__url__"})
