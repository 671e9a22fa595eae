"""A protocol names every difference, and is the same after it is written and read."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from rfdit.config.build import build
from rfdit.eval.protocol import EvalProtocol, group_by_protocol
from rfdit.eval.protocol_settings import evaluations_per_image, settings_of, weights_settings
from rfdit.pretrained.frozen import weights_digest
from rfdit.sampler import Autoguidance, ClassifierFree, CustomGrid
from tests.support.commands.composing import NEEDS, OPTIONS, composed
from tests.support.evaluation.small_evaluation import PROTOCOL


def test_a_protocol_survives_being_written() -> None:
    again = EvalProtocol.from_dict(json.loads(json.dumps(PROTOCOL.as_dict())))
    assert again == PROTOCOL
    assert again.hash == PROTOCOL.hash
    assert again.differences(PROTOCOL) == []


def test_every_field_makes_a_difference() -> None:
    changes = {
        "metrics": {"fid": {"name": "FrechetDistance", "features": "768"}},
        "features": PROTOCOL.features | {"sha256": "ef" * 32},
        "reference": {"name": "emoji", "sha256": "00" * 32},
        "samples": 10_000,
        "image_size": [64, 32],
        "inputs": PROTOCOL.inputs | {"order": "random"},
        "sampler": PROTOCOL.sampler | {"shift": 2.0},
        "steps": 50,
        "evaluations": None,
        "guidance": {"name": "NoGuidance"},
        "precision": "fp32",
        "weights": {"name": "raw"},
        "seed": 1,
    }
    assert changes.keys() == PROTOCOL.as_dict().keys()
    hashes = {PROTOCOL.hash}
    for name, value in changes.items():
        other = replace(PROTOCOL, **{name: value})
        found = other.differences(PROTOCOL)
        assert found
        assert all(line.startswith(name) for line in found)
        hashes.add(other.hash)
    assert len(hashes) == len(changes) + 1


def test_differences_name_the_setting_and_both_values() -> None:
    other = replace(PROTOCOL, guidance={"name": "NoGuidance"}, steps=10)
    assert PROTOCOL.differences(other) == [
        "guidance.name=ClassifierFree (there NoGuidance)",
        "guidance.scale=3.0 (there None)",
        "steps=25 (there 10)",
    ]


def test_a_reference_is_its_contents() -> None:
    renamed = replace(PROTOCOL, reference={"name": "other", "sha256": "cd" * 32})
    assert renamed.differences(PROTOCOL) == []
    assert renamed.hash == PROTOCOL.hash


def test_what_was_kept_of_a_reference_s_images_makes_a_difference() -> None:
    """Precision and recall depend on the number of features, and all values on the network's arithmetic."""
    few, many = (replace(PROTOCOL, reference=PROTOCOL.reference | {"features_kept": n}) for n in (100, 1000))
    assert few.differences(many) == ["reference.features_kept=100 (there 1000)"]
    assert few.hash != many.hash


def test_one_line_says_it_all() -> None:
    assert str(PROTOCOL) == (
        f"[{PROTOCOL.hash}] 50,000 images of 32x32, labels order balanced classes 10, Euler 25 steps "
        "(50 evaluations), ClassifierFree scale 3.0, bf16, weights ema profile FixedDecay decay 0.9999, "
        "features inception resize tensorflow abababab, reference emoji cdcdcdcd, seed 0"
    )


def test_records_are_grouped_and_groups_say_how_they_differ() -> None:
    records = [
        {"step": step, "values": {"fid": 1.0}, "protocol": protocol.as_dict()}
        for step, protocol in enumerate([replace(PROTOCOL, samples=100), PROTOCOL, PROTOCOL])
    ]
    first, second = group_by_protocol(records)
    assert [record["step"] for record in first.records] == [1, 2]
    assert (first.protocol, first.differences) == (PROTOCOL, [])
    assert [record["step"] for record in second.records] == [0]
    assert second.differences == ["samples=100 (there 50000)"]
    assert group_by_protocol([]) == []


def test_other_fields_than_a_protocol_has_are_refused() -> None:
    record = PROTOCOL.as_dict()
    del record["seed"]
    with pytest.raises(ValueError, match=r"differs in \['colour', 'seed'\]"):
        EvalProtocol.from_dict(record | {"colour": 1})


def test_objects_say_what_they_are() -> None:
    assert settings_of(ClassifierFree(scale=2.0)) == {"name": "ClassifierFree", "scale": 2.0}
    assert settings_of(CustomGrid(times=[1, 0.25, 0])) == {"name": "CustomGrid", "points": [1.0, 0.25, 0.0]}
    guide = nn.Linear(2, 2)
    before = settings_of(Autoguidance(scale=2.0, guide=guide))  # type: ignore[arg-type]
    assert before["guide"] == {"name": "Linear", "sha256": weights_digest(guide)}
    with torch.no_grad():
        guide.bias += 1
    assert settings_of(Autoguidance(scale=2.0, guide=guide)) != before  # type: ignore[arg-type]


@pytest.mark.parametrize("group", ["sampler", "guidance"])
def test_every_setting_of_every_option_is_in_the_description(group: str) -> None:
    """No class may keep a setting where a protocol would not see it."""
    for option in [name for g, name in OPTIONS if g == group]:
        choice = f"{group}={option}"
        node = composed("sample", choice, *NEEDS.get(choice, []))[group]
        assert isinstance(node, dict)
        found = str(settings_of(build(node)))
        for name in _settings(node) - {"batched", "times", "ckpt"}:
            assert f"'{name}'" in found, f"{group}={option}: {name}"


def _settings(node: dict[str, object]) -> set[str]:
    inner = [_settings(child) for child in node.values() if isinstance(child, dict)]
    return {name for name in node if not name.startswith("_")}.union(*inner)


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        (["guidance=none"], 5),
        (["guidance.scale=1"], 5),
        (["guidance=cfg"], 10),
        (["guidance.batched=false"], 10),
        (["sampler=heun"], 20),
        (["sampler=rk4", "guidance=none"], 20),
        (["sampler=sde", "guidance=none"], 5),
        (["guidance=interval", "guidance.low=0.3", "guidance.high=0.7"], 7),  # at t of 1, .8, .6, .4 and .2
        (["guidance=autoguidance", "guidance.guide.ckpt=not/loaded"], 10),
        (["sampler=dopri5"], None),
    ],
)
def test_evaluations_are_counted(overrides: list[str], evaluations: float | None) -> None:
    sampler = build(composed("sample", *overrides, "sampler.steps=5")["sampler"])
    assert evaluations_per_image(sampler, (3, 4, 4)) == evaluations


def test_weights_are_the_profiles_of_the_run() -> None:
    config = composed("train", "ema=power", "callbacks.ema.every_n_steps=1")
    ema = {"name": "ema", "profile": "FixedDecay", "decay": 0.9999, "warmup": True}
    assert weights_settings(config, "ema") == ema
    assert weights_settings(config, "power_05") == {
        "name": "power_05",
        "profile": "PowerFunction",
        "std": 0.05,
    }
    assert weights_settings(config, "raw") == {"name": "raw"}
    seldom = composed("train", "ema=power", "callbacks.ema.every_n_steps=4")
    assert weights_settings(seldom, "ema") == ema | {"every_n_steps": 4}
    assert weights_settings(seldom, "raw") == {"name": "raw"}
    assert weights_settings({}, "ema") == {"name": "ema"}
    without = composed("train", "ema=power", "callbacks.ema.profiles.ema=null")
    assert weights_settings(without, "ema")["name"] == "power_05"
