"""Weights in other forms: files without code, diffusers' folders, checkpoints of other repositories."""
