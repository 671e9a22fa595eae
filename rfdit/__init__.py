"""rfdit: latent Diffusion Transformers under rectified flow."""

__version__ = "0.1.0"
