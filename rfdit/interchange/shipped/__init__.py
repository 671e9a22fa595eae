"""Code that is copied into diffusers folders. Each file stands alone: it needs torch and diffusers, not rfdit."""
