"""Transfer of batches to the device, overlapped with the training step."""

import torch
from torch import Tensor

from rfdit.batch import Batch


class Transfer:
    """Moves batches to a device; to a GPU on a CUDA stream of its own.

    On the stream of the computation a copy would begin when the previous step ends, and the GPU would
    wait for it. The host never waits if the batch is in pinned memory.
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

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(computation)  # or the allocator could reuse its memory too early
            return tensor

        return moved.map(record)
