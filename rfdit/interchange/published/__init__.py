"""Published weights of DiT and its kin, under their own names."""
