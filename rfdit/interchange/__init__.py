"""Weights that travel: in files that hold no code, in diffusers' folders, from others' checkpoints."""
