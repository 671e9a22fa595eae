"""Numbers of the right type that make no sense are refused before anything is built, all at once."""

import pytest

from tests.support.commands.command_line import CommandLine

COUNTS = [
    "trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches", "trainer.log_every_n_steps",
    "callbacks.time_bins.bins", "callbacks.evaluate.every_n_steps", "callbacks.evaluate.batch_size",
    "callbacks.checkpoints.every_n_steps", "callbacks.spikes.window", "callbacks.spikes.patience",
    "callbacks.trace.steps", "strategy.replicas", "optimizer.base_width",
]  # fmt: skip
OPTIONAL_COUNTS = ["trainer.val_every_n_steps", "trainer.limit_val_batches"]
POSITIVE = ["optimizer.eps"]
OPTIONAL_POSITIVE = ["trainer.gradient_clip_val", "callbacks.evaluate.max_minutes"]
NOT_NEGATIVE = ["optimizer.lr", "optimizer.weight_decay"]
OPTIONS = ["spikes=median", "profiler=torch", "strategy=fsdp", "optimizer=adamw_mup"]
DURATION = (
    "must be [days:]hours:minutes:seconds and more than 0, such as 12:00:00 or 00:12:00:00 for twelve hours, "
    "or null"
)


def refused(value: str, expected: dict[str, list[str]]) -> dict[str, str]:
    """The sentence that each setting's override with this value ends in."""
    return {f"{name}={value}": f"must be {words}" for words, names in expected.items() for name in names}


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_every_number_out_of_bounds_is_named_once(cli: CommandLine, value: str) -> None:
    """The message names the setting from which several others are interpolated."""
    expected = {
        "more than 0 and finite": POSITIVE,
        "more than 0 and finite, or null": OPTIONAL_POSITIVE,
        "more than 1, the median itself": ["callbacks.spikes.factor"],
        "more than 0 and at most 525600, a year": ["strategy.timeout_minutes"],
    }
    if value != "nan":  # no integer
        expected |= {"at least 1": COUNTS, "at least 1, or null": OPTIONAL_COUNTS}
    if value != "0":
        expected |= {"at least 0 and finite": NOT_NEGATIVE, "from 0 to 1": ["schedule.final"]}
    if value == "-1":
        expected |= {"at least 0": ["schedule.warmup_steps", "callbacks.trace.first_step"]}
    if value == "0":
        expected |= {"at least 1, or -1 for a run without end": ["trainer.max_steps"]}
    sentences = refused(value, expected)
    message = cli.error("train", *OPTIONS, *sentences)
    assert sorted(message.split("; ")) == sorted(f"{setting} {words}" for setting, words in sentences.items())


def test_numbers_that_callbacks_have_of_their_own(cli: CommandLine) -> None:
    sentences = refused("0", {"at least 1": [
        "callbacks.time_bins.every_n_steps", "callbacks.skipped.every_n_steps",
        "callbacks.spikes.every_n_steps", "callbacks.grid.every_n_steps", "callbacks.grid.count",
        "callbacks.throughput.every_n_steps",
    ]})  # fmt: skip
    whole = [
        "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: x, sampler: null}",
        "callbacks.throughput={_target_: rfdit.callbacks.Throughput}",
    ]
    added = ["+" * s.startswith(("callbacks.grid", "callbacks.throughput")) + s for s in sentences]
    message = cli.error("train", "spikes=median", *whole, *added)
    for setting, words in sentences.items():
        assert f"{setting} {words}" in message.split("; ")


@pytest.mark.parametrize("betas", ["[0.9]", "[0.9, 1]", "[-0.1, 0.9]", "[nan, 0.9]", "[0.9, 'a']"])
def test_betas(cli: CommandLine, betas: str) -> None:
    assert cli.error("train", f"optimizer.betas={betas}") == (
        f"optimizer.betas={betas} must be two numbers, each at least 0 and less than 1"
    )


def test_betas_may_be_integers(cli: CommandLine) -> None:
    cli.train("run_dir=run", "optimizer.betas=[0,0.99]", "trainer.max_steps=1")


@pytest.mark.parametrize(
    "given", ["abc", "10", "1:30", "00:00:00:00", "00:12:00:00x", "-1", "9999999:00:00:00"]
)
def test_durations(cli: CommandLine, given: str) -> None:
    assert cli.error("train", f"trainer.max_time={given}") == f"trainer.max_time={given} {DURATION}"


def test_a_share_above_one(cli: CommandLine) -> None:
    message = cli.error("train", "schedule=cosine", "schedule.final=2")
    assert message == "schedule.final=2 must be from 0 to 1"


def test_a_schedule_that_decays_needs_an_end(cli: CommandLine) -> None:
    assert cli.error("train", "trainer.max_steps=-1") == (
        "schedule.total_steps=-1 must be at least 1, since a decay needs an end; "
        "set trainer.max_steps, or use schedule=constant"
    )


def test_a_wrong_type_where_there_is_a_limit_is_a_wrong_type(cli: CommandLine) -> None:
    message = cli.error("train", "trainer.val_every_n_steps=often")
    assert message == "trainer.val_every_n_steps='often' is a text, and it takes a whole number or null"


def test_a_seed_that_numpy_does_not_take(cli: CommandLine) -> None:
    assert cli.error("train", "seed=-1") == "seed=-1 must be from 0 to 4294967295"


@pytest.mark.parametrize("items", ["[en,de,fr,es,it,nl,pl,3]", "[en,de,fr,es,it,nl,pl,[ru]]"])
def test_every_item_of_a_list_is_checked(cli: CommandLine, items: str) -> None:
    message = cli.error("train", "data=laion", "data.shards=x.tar", f"data.filters.languages={items}")
    assert message.endswith(" is a list, and it takes a list of texts or null")
