"""A page on which to try a model: its form, the model behind it, its history and its looks."""
