"""Arguments that cannot be settings as they were typed, with what to write instead."""

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

MISSING = object()
DASHES = "-\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}"  # word processors put others in place of the first

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

# What people call settings elsewhere; the last part of a name, and the settings of commands, of which the first that
# a command has is meant.
OTHER_NAMES = {
    "batch": ["data.batch_size", "batch_size"],
    "bf16": ["trainer.precision", "precision"],
    "bs": ["data.batch_size", "batch_size"],
    "cfg": ["guidance.scale"],
    "cfg_scale": ["guidance.scale"],
    "checkpoint": ["ckpt"],
    "class": ["labels"],
    "classes": ["conditioner.num_classes", "labels"],
    "dataset": ["data"],
    "device": ["trainer.accelerator", "accelerator"],
    "epochs": ["trainer.max_steps"],
    "folder": ["runs"],
    "fp16": ["trainer.precision", "precision"],
    "gpus": ["trainer.devices", "devices"],
    "gradient_accumulation_steps": ["trainer.accumulate_grad_batches"],
    "height": ["resolution", "data.resolution"],
    "image_size": ["data.resolution", "resolution"],
    "learning_rate": ["optimizer.lr"],
    "max_epochs": ["trainer.max_steps"],
    "model_path": ["ckpt"],
    "n": ["count"],
    "name": ["run_dir"],
    "num_gpus": ["trainer.devices", "devices"],
    "num_images": ["count"],
    "num_inference_steps": ["sampler.steps"],
    "num_samples": ["count"],
    "num_steps": ["sampler.steps"],
    "out": ["sheet", "run_dir"],
    "output_dir": ["out", "run_dir"],
    "prompt": ["prompts"],
    "resume": ["ckpt"],
    "warmup": ["schedule.warmup_steps"],
    "width": ["resolution", "data.resolution"],
    "workers": ["data.num_workers", "num_workers"],
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
        if word.startswith(tuple(DASHES)):
            _check_flag(word, following)
        elif "=" in word and NAME.fullmatch(bare := name.strip("./")) and bare != name:
            raise ValueError(f"{word} is not a setting and its value; write {word.replace(name, bare, 1)}")
        elif word == "help":
            raise ValueError("help is not a setting; write --help")
        elif NAME.fullmatch(name):
            known = name in names or name in OTHER_NAMES or (groups / re.split(r"[./]", name)[0]).is_dir()
            _check_spaces(word, following, known=known)


def _check_flag(word: str, following: Sequence[str]) -> None:
    flag, equals, value = word.partition("=")
    if flag in FLAGS or re.fullmatch(r"-[hrm]+", word):
        return
    name = flag.lstrip(DASHES).replace("-", "_")
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
    if other := next((name for name in OTHER_NAMES.get(last, []) if name in settings), None):
        return other
    alike = [setting for setting in settings if setting.rpartition(".")[2] == last]
    alike = alike or [setting for setting in settings if setting.startswith(f"{path}_")]
    return min(alike, key=lambda setting: (setting.count("."), len(setting)), default=None)


def nearest(path: str, settings: Sequence[str]) -> str | None:
    """The setting whose name is spelt most alike, in each of its parts."""
    for near in difflib.get_close_matches(path.lower(), settings, n=3):
        last, other = (re.split(r"[./]", name)[-1].lower() for name in (path, near))
        if difflib.get_close_matches(last, [other]):
            return near
    return None


def options_with(path: str, groups: Path) -> list[str]:
    """The options of a setting's group, as GROUP=OPTION, that have the setting; at most three."""
    group, *keys = path.split(".")
    found = []
    for file in sorted((groups / group).glob("*.yaml")) if keys else ():
        text = file.read_text()
        node: Any = yaml.safe_load(text)
        for key in path.split(".") if text.startswith("# @package _global_") else keys:
            node = node.get(key, MISSING) if isinstance(node, dict) else MISSING
        if node is not MISSING:
            found.append(f"{group}={file.stem}")
    return found[:3]


def option_named(path: str, groups: Path, settings: Sequence[str]) -> str | None:
    """The option, as GROUP=OPTION, of a group that the command has and whose option has this name."""
    own = {name.partition(".")[0] for name in settings}
    files = sorted(groups.glob(f"*/{path}.yaml")) if NAME.fullmatch(path) else []
    return next((f"{file.parent.name}={file.stem}" for file in files if file.parent.name in own), None)
