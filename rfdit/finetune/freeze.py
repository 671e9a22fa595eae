"""Parameters that a run does not train, chosen by patterns of their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

EXAMPLES = 3  # names that an error message lists


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters whose names match; a pattern that begins with ! exempts names from those before it.

    Patterns are those of a shell: `*` stands for any characters, dots too. So `["*", "!conditioner.*"]` trains the
    conditioner alone.
    Raises ValueError for a pattern that matches nothing, and if nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern.removeprefix("!"))}
        if not matched:
            listed = ", ".join(names[:: max(1, len(names) // EXAMPLES)][:EXAMPLES])
            raise ValueError(
                f"freeze={pattern} matches no parameter of the network; names are such as {listed}, and * stands for "
                "any characters"
            )
        frozen = frozen - matched if pattern.startswith("!") else frozen | matched
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"freeze={list(patterns)} leaves nothing to train; exempt some with a pattern after !"
        )
