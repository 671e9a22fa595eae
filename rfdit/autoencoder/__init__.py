"""Images <-> latents: frozen autoencoders that own their normalisation."""
