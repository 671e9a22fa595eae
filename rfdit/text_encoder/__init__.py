"""Captions -> what the network is told: tokens, their mask and a pooled vector."""
