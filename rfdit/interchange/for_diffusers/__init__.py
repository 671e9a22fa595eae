"""Models in the forms of diffusers, and diffusers' transformers as models."""
