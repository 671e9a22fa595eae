"""Runs that start from weights that there are: which of them fit, and which parameters are trained."""
