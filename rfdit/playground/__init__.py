"""A page to try a model: what its visitors may set, how pictures come of it, and how it looks."""
