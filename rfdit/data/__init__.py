"""Captioned or labelled pictures: tar shards, the stream that reads them, and the embedded default."""
