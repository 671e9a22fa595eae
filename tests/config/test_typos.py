"""What people type by mistake, and the one sentence that they get, which says what to write."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rfdit.__main__ import main
from rfdit.config.build import CONFIG_DIR, register, validate
from rfdit.config.errors import explain_errors
from rfdit.config.overrides import understood
from rfdit.config.schemas import text_settings

TYPOS = {
    # Options of groups.
    "train patch=4": "patch=4 is not an option; did you mean patch=p4? choose from none, p2, p4, p8, p16, p32",
    "train size=null": "size=null: null is not an option of a group; leave size out, or write ~size to remove it",
    "train size=384": "size=384 is not an option; choose from b, l, none, s, tiny, xl",
    "train model=DiT": "model=DiT does not exist; did you mean dit? choose from dit, ",
    "train optimizer=adam": "optimizer=adam does not exist; did you mean adamw? choose from adamw, adamw_mup, muon",
    "train eval=fid": "eval=fid does not exist; did you mean ",
    "train guidance=3": "guidance=3 is not an option; did you mean guidance.scale=3? choose from apg, ",
    "sample sampler=25": "sampler=25 is not an option; did you mean sampler.steps=25? choose from ",
    "train logger=tensorbord": "logger=tensorbord does not exist; ",
    "train hydra/launcher=jobs": "hydra/launcher=jobs does not exist; ",
    "train size=s,b": "size=s,b gives several values, which is a sweep: add -m, or write a list as size=[s,b]",
    # Names of settings.
    "train lr=1e-3": "lr is not a setting; did you mean optimizer.lr?",
    "train learning_rate=1e-3": "learning_rate is not a setting; did you mean optimizer.lr?",
    "train optimizer.learning_rate=1e-3": "optimizer.learning_rate is not a setting; did you mean optimizer.lr?",
    "train batch_size=8": "batch_size is not a setting; did you mean data.batch_size?",
    "train max_steps=100": "max_steps is not a setting; did you mean trainer.max_steps?",
    "train trainer.epochs=3": "trainer.epochs is not a setting; did you mean trainer.max_steps?",
    "train trainer.max_step=3": "trainer.max_step is not a setting; did you mean trainer.max_steps?",
    "train gpus=2": "gpus is not a setting; did you mean trainer.devices?",
    "train patch_size=2": "patch_size is not a setting; did you mean model.patch_size?",
    "train Model=dit": "Model is not a setting; did you mean model?",
    "train trainer/max_steps=5": "trainer/max_steps is not a setting; did you mean trainer.max_steps?",
    "train callbacks.grid.every=100": "callbacks.grid.every is not a setting; did you mean callbacks.grid.every_n_",
    "train trainer.max_epochs=3": "trainer.max_epochs is not a setting; write trainer.max_steps=...",
    "train +trainer.max_steps=5": "trainer.max_steps is there already; write trainer.max_steps=... without +",
    "train +sed=3": "sed is not a setting; did you mean seed?",
    "sample cfg=4": "cfg is not a setting; did you mean guidance.scale?",
    "sample prompt=cat": "prompt is not a setting; did you mean prompts?",
    # How a setting is written.
    "train --trainer.max_steps=5": (
        "--trainer.max_steps=5 is not a flag; settings are written without dashes: trainer.max_steps=5"
    ),
    "sample -ckpt run": "-ckpt is not a flag; settings are written without dashes: ckpt=run",
    "sample --batch-size=4": "--batch-size=4 is not a flag; settings are written without dashes: batch_size=4",
    "train trainer.max_steps = 5": (
        "trainer.max_steps = 5 is not a setting and its value; write trainer.max_steps=5"
    ),
    "train trainer.max_steps= 5": "trainer.max_steps= 5 is not a setting and its value; write trainer.max_steps=5",
    "train trainer.max_steps 5": "trainer.max_steps 5 is not a setting and its value; write trainer.max_steps=5",
    "train compile": "compile cannot be read as SETTING=VALUE; ",
    "train help": "help is not a setting; write --help",
    # Values.
    "train trainer.max_steps=1e5": "trainer.max_steps=100000.0 is a number, and it takes a whole number; write 100000",
    "train trainer.max_steps=ten": "trainer.max_steps='ten' is a text, and it takes a whole number",
    "train optimizer.lr=0,001": (
        "optimizer.lr=0,001 gives several values, which is a sweep: add -m, or write a list as optimizer.lr=[0,001]; "
        "with a decimal point it is optimizer.lr=0.001"
    ),
    "train optimizer.lr=fast": "optimizer.lr='fast' is a text, and it takes a number",
    "train model.patch_size=p4": "model.patch_size='p4' is a text, and it takes a whole number",
    "train seed=1.5": "seed=1.5 must be a whole number",
    "train compile=maybe": "compile=maybe must be true or false",
    "train trainer.max_time=12h": "trainer.max_time=12h must be [days:]hours:minutes:seconds and more than 0, ",
    "train sampler.steps=0": "sampler.steps=0 must be at least 1",
    "train data=laion": "data.shards is not set; give data.shards=...",
    "train optimizer.lr=1\N{MINUS SIGN}4": "optimizer.lr='1\N{MINUS SIGN}4' is a text, and it takes a number",
    "train optimizer.lr=1e\N{MINUS SIGN}4": (
        "optimizer.lr='1e\N{MINUS SIGN}4' is a text, and it takes a number; write 0.0001"
    ),
    "train callbacks.checkpoints.every_n_steps=100k": (
        "callbacks.checkpoints.every_n_steps='100k' is a text, and it takes a whole number; write 100000"
    ),
    "train trainer.max_steps=1,000": (
        "trainer.max_steps=1,000 gives several values, which is a sweep: add -m, or write a list as "
        "trainer.max_steps=[1,000]; in thousands it is trainer.max_steps=1000"
    ),
    "train data.flip=1": "data.flip=1 is a whole number, and it takes true or false",
    "sample seeds=0-3": "seeds=0-3 must be a list: seeds=[A,B]",
    "sample seeds=range(4)": "seeds=range(4) gives several values, which is a sweep: add -m, or write a list as ",
    # Settings of options that were not chosen, options without their group, removed settings.
    "train init.ckpt=run": "init.ckpt is not a setting here; it belongs to init=weights",
    "train model=dit conditioner.num_classes=10": (
        "conditioner.num_classes is not a setting here; it belongs to conditioner=labels"
    ),
    "sample use.strength=0.5": "use.strength is not a setting here; it belongs to use=image_to_image",
    "train wandb=true": "wandb is not a setting; did you mean logger=wandb?",
    "train data=/my/pictures": "data=/my/pictures is not an option; did you mean data.shards=/my/pictures? choose ",
    "train ~trainer.max_steps": "there is no setting trainer.max_steps, whose value another one takes: give it, ",
    "train \N{EN DASH}seed=1": "\N{EN DASH}seed=1 is not a flag; settings are written without dashes: seed=1",
    "train seed.=1": "seed.=1 is not a setting and its value; write seed=1",
    # What a shell makes of braces, brackets and spaces.
    "train data=laion data.shards=a/00.tar data.shards=a/01.tar": (
        "data.shards is given twice, as a/00.tar and as a/01.tar; a shell expands braces unless they are quoted: "
    ),
    "sample prompts=[ein schönes Haus]": (
        "prompts=[ein has no closing ]; since a shell divides at spaces, quote all of it: 'prompts=[...]'"
    ),
    "sample prompts=ein schönes Haus": (
        "schönes cannot be read as SETTING=VALUE; quote values with spaces, such as 'prompts=[a red circle]'"
    ),
    "sample prompts=[a": "prompts=[a has no closing ]; ",
}


def compose_as_typed(command: str, arguments: list[str]) -> None:
    """What a command does before it begins to work, without Hydra's own reading of `sys.argv`."""
    register()
    GlobalHydra.instance().clear()
    with explain_errors(command, ValueError), initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = understood(arguments, texts=text_settings(command), groups=CONFIG_DIR)
        validate(compose(command, overrides=["run_dir=x", *overrides] if command == "train" else overrides))


@pytest.mark.parametrize("typed", TYPOS)
def test_typos(typed: str) -> None:
    command, *arguments = typed.split(" ")
    with pytest.raises(SystemExit) as stopped:
        compose_as_typed(command, arguments)
    message = str(stopped.value.code)
    assert message.startswith(f"error: {TYPOS[typed]}")
    assert "\n" not in message


def test_there_are_forty() -> None:
    assert len(TYPOS) >= 40


def test_a_mistyped_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rfdit", "trian"])
    with pytest.raises(SystemExit, match=r"^error: rfdit trian is not a command; did you mean train\?$"):
        main()
