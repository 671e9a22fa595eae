"""`rfdit COMMAND [GROUP=OPTION] [SETTING=VALUE]`, also as `python -m rfdit COMMAND`."""

import contextlib
import difflib
import sys
from importlib import import_module

from rfdit.processes.ending import ended_as_rank
from rfdit.processes.interrupt import ended_by_interrupt

COMMANDS = {
    "train": "train a model; the same as python train.py",
    "sample": "images from a checkpoint; the same as python sample.py",
    "data": "what a folder or set of images has, before a run trains on it",
    "encode": "cache the latents and text features of image shards",
    "pack": "write any source of images as tar shards",
    "index": "write the indexes with which remote shards start at once",
    "reference": "statistics of real images, which FID and other metrics compare with",
    "plan": "parameters, memory and time of a run, before it starts",
    "posthoc": "a moving average of another length, from a run's snapshots",
    "export": "a run's weights as safetensors or as a diffusers folder",
    "convert": "published weights of others, for rfdit.load",
    "report": "a page about all runs below a folder",
    "demo": "a page on which to try a model",
}


def main() -> None:
    """Run the command that the first argument names, with the rest as its arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: rfdit COMMAND [GROUP=OPTION] [SETTING=VALUE]\n")
        print("\n".join(f"  {command:<10} {what}" for command, what in COMMANDS.items()))
        print("\nrfdit COMMAND --help lists a command's settings.")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise SystemExit(f"error: rfdit {name} is not a command; {hint}")
    sys.argv[:2] = [f"rfdit {name}"]
    run(name)


def run(name: str) -> None:
    """Import and run a command, which Ctrl-C ends with one line and exit code 130, also while it is imported."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print_help(name, sys.argv[1:])
        return
    with ended_as_rank(), ended_by_interrupt() as interrupt:
        command = import_module(f"rfdit.commands.{name}")
        interrupt.raises()
        command.main()


def print_help(name: str, arguments: list[str]) -> None:
    """Print a command's help, for which it need not be imported. A reader that closes early is not an error."""
    from rfdit.config.help import help_text

    with contextlib.suppress(BrokenPipeError):
        try:
            print(help_text(name, arguments), flush=True)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
