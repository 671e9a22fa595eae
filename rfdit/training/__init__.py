"""The LightningModule and its wiring."""
