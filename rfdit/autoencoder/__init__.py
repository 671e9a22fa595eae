"""Frozen autoencoders between images and latents, normalisation included."""
