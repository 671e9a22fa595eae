"""Reports the share of captions that are longer than the text encoder reads."""

import lightning as L

from rfdit.batch import Batch
from rfdit.callbacks.capabilities import flow_module
from rfdit.limits import Count
from rfdit.text_encoder.unread import TruncationCount

NOTABLE = 0.05  # difference of shares that is worth another line


class CutCaptions(L.Callback):
    """Prints the share of captions that are cut off, if any are: of the first batch, before its step, and of more.

    Those of cached text features were cut off, and told, when `rfdit encode` computed these.

    captions: their number, on rank 0.
    """

    def __init__(self, *, captions: Count = 1000) -> None:
        self.captions = captions
        self._cut: TruncationCount | None = None
        self._told = False
        self._printed: float | None = None  # the share that was printed last

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._told or batch.condition is not None or batch.captions is None:
            return
        if self._cut is None:
            encoder = flow_module(pl_module).network.conditioner.encoder
            self._cut = TruncationCount(encoder, most=self.captions)
        first = not self._cut.read
        self._cut.add(batch.captions)
        if self._cut.done:
            self._tell(trainer)
        elif first:
            self._print(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._told:
            self._tell(trainer)

    def _tell(self, trainer: L.Trainer) -> None:
        self._told = True
        self._print(trainer)

    def _print(self, trainer: L.Trainer) -> None:
        if self._cut is None or not trainer.is_global_zero or not (sentence := self._cut.sentence()):
            return
        if self._printed is None or abs(self._cut.share - self._printed) > NOTABLE:
            print(f"warning: {sentence}", flush=True)
            self._printed = self._cut.share
