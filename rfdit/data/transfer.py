"""Batches on their way to the device."""

import torch
from torch import Tensor

from rfdit.batch import Batch


class Transfer:
    """Moves batches to a device; to a GPU on a stream of copies alone, beside the step that runs there.

    On the stream of the computation a copy would begin when the step before it ends, and the GPU would
    wait for it. The host never waits, if the batch lies in page-locked memory.
    """

    def __init__(self) -> None:
        self._copies: torch.cuda.Stream | None = None

    def __call__(self, batch: Batch, device: torch.device) -> Batch:
        if device.type != "cuda":
            return batch.to(device)
        if self._copies is None:
            self._copies = torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            moved = batch.to(device)
        computation = torch.cuda.current_stream(device)
        computation.wait_stream(self._copies)

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(computation)  # or its memory could be given to the next copy too early
            return tensor

        return moved.map(used)
