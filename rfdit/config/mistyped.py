"""Arguments that cannot be settings as they were typed, with what to write instead."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

# Hydra's own flags; those in VALUED take the next argument.
VALUED = {
    *(
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
    ),
    *("--info", "-i", "--experimental-rerun"),
}
FLAGS = VALUED | {
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *("--shell-completion", "-sc"),
}
NAME = re.compile(r"\+{0,2}[A-Za-z_][\w./@]*")

# What people call settings elsewhere; the last part of a name, by command where it differs.
OTHER_NAMES = {
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "cfg": "guidance.scale",
    "cfg_scale": "guidance.scale",
    "checkpoint": "ckpt",
    "epochs": "trainer.max_steps",
    "gpus": "trainer.devices",
    "image_size": "data.resolution",
    "learning_rate": "optimizer.lr",
    "max_epochs": "trainer.max_steps",
    "name": "run_dir",
    "num_gpus": "trainer.devices",
    "num_steps": "sampler.steps",
    "out": "run_dir",
    "output_dir": "run_dir",
    "prompt": "prompts",
    "resume": "ckpt",
    "workers": "data.num_workers",
}


def check_words(arguments: Sequence[str], *, names: Collection[str], groups: Path) -> None:
    """Raises ValueError for an argument that is neither SETTING=VALUE nor one of Hydra's flags.

    Such are settings with dashes, and names and values that a shell has divided at spaces.
    names: settings outside of groups. groups: the folder of the config groups.
    """
    words = list(arguments)
    for i, word in enumerate(words):
        if i and words[i - 1] in VALUED:
            continue
        name, following = word.partition("=")[0], words[i + 1 : i + 3]
        if word.startswith("-"):
            _check_flag(word, following)
        elif word == "help":
            raise ValueError("help is not a setting; write --help")
        elif NAME.fullmatch(name):
            known = name in names or name in OTHER_NAMES or (groups / re.split(r"[./]", name)[0]).is_dir()
            _check_spaces(word, following, known=known)


def _check_flag(word: str, following: Sequence[str]) -> None:
    flag, equals, value = word.partition("=")
    if flag in FLAGS or re.fullmatch(r"-[hrm]+", word):
        return
    name = flag.lstrip("-").replace("-", "_")
    value = value if equals else following[0] if following else "VALUE"
    raise ValueError(f"{word} is not a flag; settings are written without dashes: {name}={value}")


def _check_spaces(word: str, following: Sequence[str], *, known: bool) -> None:
    """word: a name, or one with a value. known: there is such a setting, or one of a similar name."""
    name, equals, value = word.partition("=")
    one, two = [*following, "", ""][:2]
    is_value = bool(one) and "=" not in one and not one.startswith("-")
    if equals and not value and is_value:
        typed, joined = f"{word} {one}", f"{name}={one}"
    elif not equals and one == "=":
        typed, joined = f"{name} = {two}", f"{name}={two}"
    elif not equals and one.startswith("="):
        typed, joined = f"{name} {one}", f"{name}{one}"
    elif not equals and known:
        typed, joined = (f"{name} {one}", f"{name}={one}") if is_value else (name, f"{name}=VALUE")
    else:
        return
    raise ValueError(f"{typed} is not a setting and its value; write {joined}")


def meant(path: str, settings: Sequence[str]) -> str | None:
    """The setting that a mistyped path may mean: of another name elsewhere, that ends alike, or begins with it."""
    last = re.split(r"[./]", path)[-1]
    other = OTHER_NAMES.get(last)
    if other in settings:
        return other
    alike = [setting for setting in settings if setting.rpartition(".")[2] == last]
    alike = alike or [setting for setting in settings if setting.startswith(f"{path}_")]
    return min(alike, key=lambda setting: (setting.count("."), len(setting)), default=None)
