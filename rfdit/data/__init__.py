"""Data with captions or labels: sources of raw samples, their decoding, and the stream of batches."""
