"""The layers of which blocks and networks are made, and how they compute."""
