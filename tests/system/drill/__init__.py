"""The drill: corruptions of every kind of file, and kills of every command; `make drill` runs it."""
