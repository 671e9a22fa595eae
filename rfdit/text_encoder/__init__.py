"""Text encoders: captions to tokens, their mask and a pooled vector."""
