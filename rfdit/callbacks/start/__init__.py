"""Callbacks around the first step: a summary, warnings, and the configuration for the loggers."""
