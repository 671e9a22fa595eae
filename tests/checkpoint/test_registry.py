"""What a saved configuration may name: each registered part in its place, and nothing else, however it is named."""

from typing import Any

import pytest

from rfdit.checkpoint.registry import GROUPS, REGISTRY, check_parts
from rfdit.config.build import build
from tests.support.commands.composing import NEEDS, OPTIONS, composed

# Groups of conf/ that end up inside of the registry's groups, and options that read another checkpoint.
WITHIN = {*GROUPS, "size", "patch", "time", "coupling", "weighting"}
OTHERS = {"autoguidance", "guidance_distillation"}
SAVED = [f"{group}={name}" for group, name in OPTIONS if group in WITHIN and name not in OTHERS]


def groups(*overrides: str) -> dict[str, Any]:
    """The groups of a training configuration that describe its model."""
    config = composed("train", *overrides)
    return {group: config[group] for group in GROUPS}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default groups with another value at a path."""
    config = groups()
    *parents, last = path.split(".")
    node: Any = config
    for name in parents:
        node = node[name]
    node[last] = value
    return config


@pytest.mark.parametrize("option", SAVED)
def test_every_option_of_a_model_is_registered(option: str) -> None:
    check_parts(groups(option, *NEEDS.get(option, [])))


def test_a_registered_part_is_the_class_that_is_built() -> None:
    for name in ("rfdit.sampler.Euler", "rfdit.sampler.solvers.Euler"):
        assert type(build({"_target_": name})) is REGISTRY[name]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "webdataset.gopen",
        "hydra.utils.instantiate",
        "rfdit.commands.sample.os.system",  # what a module of ours imported
        "rfdit.config.build.build",
        "rfdit.config.build.composed",
        "rfdit.playground.model.PlaygroundModel",  # composes and builds settings of its own
        "rfdit.generate.guide.Guide",  # reads another checkpoint
        "rfdit.generate.teacher.FrozenTeacher",
        "rfdit.objective.GuidanceDistillation",
        "rfdit.sampler.Autoguidance",
        "rfdit.data.tar.source.TarReader",
        "rfdit.data.shapes.shards.ShapesShards",
        "rfdit.storage.disk_cache.DiskCache",
        "rfdit.interchange.source.open_model",
        "rfdit.text_encoder.pretrained.create_open_clip",
        "rfdit.sampler.Sampler.__init__",
        "rfdit.sampler",
        "rfdit.nothing.AtAll",
        "nothing",
        "",
        None,
        ["rfdit.sampler.Euler"],
        {"_target_": "rfdit.sampler.Euler"},
    ],
)
@pytest.mark.parametrize(
    "path", ["model", "autoencoder", "sampler.solver", "conditioner.encoder", "model.width"]
)
def test_nothing_else_is_named(path: str, target: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^{path}\._target_=.* is not a part of a model that rfdit knows, and"
    ):
        check_parts(changed(path, {"_target_": target}))


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("model", "rfdit.sampler.Euler"),
        ("model.width", "rfdit.sampler.Euler"),
        ("model.attention", "rfdit.model.DiT"),
        ("sampler.guidance", "rfdit.objective.UniformTime"),
        ("sampler.steps", "rfdit.model.ManualAttention"),
        ("conditioner.encoder", "rfdit.autoencoder.identity.IdentityAutoencoder"),
    ],
)
def test_a_part_stands_only_where_the_signature_takes_it(path: str, target: str) -> None:
    with pytest.raises(ValueError, match=rf"^{path}\._target_={target} is not a part of a model there"):
        check_parts(changed(path, {"_target_": target}))


def circular() -> dict[str, Any]:
    node: dict[str, Any] = {}
    node["a"] = node
    return node


def repeated() -> list[Any]:
    """2^60 values in 60 lists."""
    node: list[Any] = []
    for _ in range(60):
        node = [node, node]
    return node


EVIL = {"_target_": "os.system", "command": "true"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("sampler.solver._args_", [EVIL], "sampler.solver._args_ is not a setting"),
        ("model._partial_", True, "model._partial_ is not a setting"),
        ("model._recursive_", False, "model._recursive_ is not a setting"),
        ("model._convert_", "none", "model._convert_ is not a setting"),
        ("sampler._mode_", "x", "sampler._mode_ is not a setting"),
        ("model.positions", EVIL, r"model.positions._target_=os.system is not a part"),
        ("model.input_size", [EVIL], r"model.input_size.0._target_=os.system is not a part"),
        ("model.input_size", {"a": [[EVIL]]}, r"model.input_size.a.0.0._target_=os.system is not a part"),
        ("autoencoder.latent_channels", "${oc.env:HOME}", r"latent_channels=\S+ is an interpolation"),
        ("model.positions", "${oc.decode:'1'}", r"model.positions=\S+ is an interpolation"),
        ("model.positions", "a${now:x}", r"model.positions=\S+ is an interpolation"),
        ("model.positions", "${model}", r"model.positions=\S+ is an interpolation"),
        ("model.width", "???", r"model.width=\?\?\? is an interpolation"),
        ("model.positions", "sinc?s", "model.positions='sinc[?]s' is a text, and it takes"),
        ("model.width", "x", "model.width='x' is a text, and it takes a whole number"),
        ("model.width", 1.5, "model.width=1.5 is a number, and it takes a whole number"),
        ("model.depth", 10**9, "model.depth is an integer beyond 10,000,000"),
        ("model.width", 10**4000, "model.width is an integer beyond 10,000,000"),
        ("model.widht", 3, "model.widht is not a setting of MMDiT; did you mean width"),
        ("model.qk_norm", (True,), "model.qk_norm is a tuple, and settings are"),
        ("model.positions", b"sincos", "model.positions is a bytes, and settings are"),
        ("model", {1: 2}, "model has a key of the type int"),
        ("model", {"width": 3}, "model has no _target_"),
        ("model", "rfdit.model.DiT", "model has no _target_"),
        ("model", circular(), "model is nested too deeply"),
        ("model", repeated(), "model is nested too deeply, or has too many values"),
    ],
)
def test_settings_are_those_of_the_signature(path: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_parts(changed(path, value))


def test_a_missing_setting_is_named() -> None:
    config = groups()
    del config["model"]["in_channels"]
    with pytest.raises(ValueError, match=r"^model\.in_channels is not set; MMDiT needs it$"):
        check_parts(config)


class Own:
    """A class of a package that the user allows."""

    def __init__(self, *, part: object = None) -> None:
        self.part = part


def test_a_users_package_is_allowed_by_the_user_alone() -> None:
    own = {"_target_": f"{__name__}.Own", "part": [{"_target_": "rfdit.sampler.Euler"}]}
    for packages in ([], ["rfdit"], ["test"], ["tests.config"]):
        with pytest.raises(ValueError, match=r"packages=\[YOUR_PACKAGE\]"):
            check_parts(changed("model.attention", own), packages)
    check_parts(changed("sampler.solver", own), ["tests"])
    for inside in (EVIL, {"_target_": f"{__name__}.EVIL"}, {"_target_": "tests.nothing.Own"}):
        with pytest.raises(
            ValueError, match=r"part\.0\._target_=\S+ is not a part of a model that rfdit knows"
        ):
            check_parts(changed("sampler.solver", own | {"part": [inside]}), ["tests"])


def test_rfdit_is_not_allowed_as_a_package() -> None:
    with pytest.raises(ValueError, match="is not a part of a model"):
        check_parts(changed("model.width", {"_target_": "rfdit.config.build.composed"}), ["rfdit"])


@pytest.mark.parametrize(
    ("path", "value", "most"),
    [
        ("sampler.steps", 10_001, "10,000"),
        ("sampler.solver.max_evaluations", 10_001, "10,000"),
        ("sampler.steps", 10**9, "10,000"),
        ("prediction.schedule.timesteps", 100_001, "100,000"),
    ],
)
def test_building_and_sampling_have_an_end(path: str, value: int, most: str) -> None:
    options = {"sampler.solver": "sampler=dopri5", "prediction.schedule": "prediction=noise"}
    config = groups(*(options[name] for name in [path.rpartition(".")[0]] if name in options))
    *parents, last = path.split(".")
    node: Any = config
    for name in parents:
        node = node[name]
    check_parts(config)
    node[last] = int(most.replace(",", ""))
    check_parts(config)
    node[last] = value
    with pytest.raises(
        ValueError, match=rf"^{path}={value} is more than {most}, the most that a model's config"
    ):
        check_parts(config)
