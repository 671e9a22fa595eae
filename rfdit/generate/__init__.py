"""Generation of images from a checkpoint: requests, uses, outputs, and the loop over devices."""
