"""Pairs of images of one caption, of which one is preferred."""
