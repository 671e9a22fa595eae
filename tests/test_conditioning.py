"""The null condition, and the per-sample drop that teaches a network both of guidance's fields."""

import pytest
import torch

from rfdit.batch import Batch, Condition
from rfdit.conditioning import LabelConditioner, TextConditioner, drop_condition
from rfdit.randomness import SampleGenerator

CPU = torch.device("cpu")


class LetterEncoder(torch.nn.Module):
    """One token: the caption's length."""

    width = pooled_width = length = 1

    def forward(self, captions: list[str], *, device: torch.device) -> Condition:
        lengths = torch.tensor([[float(len(caption))] for caption in captions], device=device)
        return Condition(pooled=lengths, tokens=lengths[:, None], mask=torch.ones_like(lengths).bool())


def keyed(n: int, *, first: int = 0) -> SampleGenerator:
    return SampleGenerator(seed=0, keys=torch.arange(first, first + n))


def dropped(n: int, probability: float, *, first: int = 0) -> torch.Tensor:
    """The samples out of n that lost their condition."""
    cond, null = Condition(pooled=torch.ones(n, 1)), Condition(pooled=torch.zeros(1, 1))
    given = drop_condition(cond, null, probability=probability, generator=keyed(n, first=first))
    return given.pooled[:, 0] == 0


def test_the_drop_has_its_rate() -> None:
    n = 20000
    for p in (0.1, 0.5):
        assert dropped(n, p).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


def test_the_drop_belongs_to_the_sample() -> None:
    assert torch.equal(dropped(64, 0.3)[40:], dropped(24, 0.3, first=40))


def test_probability_zero_drops_none_and_one_drops_all() -> None:
    assert not dropped(1000, 0.0).any()
    assert dropped(1000, 1.0).all()


def test_the_whole_condition_is_dropped() -> None:
    conditioner = TextConditioner(encoder=LetterEncoder())
    cond = conditioner(["word"] * 50, device=CPU)
    given = drop_condition(cond, conditioner.null(device=CPU), probability=0.5, generator=keyed(50))
    assert given.tokens is not None
    assert set(given.pooled.flatten().tolist()) == {0.0, 4.0}
    assert torch.equal(given.pooled, given.tokens[:, 0])


def test_labels_are_rows_of_the_table_and_null_is_the_last() -> None:
    conditioner = LabelConditioner(num_classes=5, width=8)
    cond = conditioner([0, 4, 0], device=CPU)
    assert torch.equal(cond.pooled, conditioner.table.weight[[0, 4, 0]])
    assert cond.tokens is None
    null = conditioner.null(device=CPU).pooled
    assert null.shape == (1, 8)
    assert torch.equal(null[0], conditioner.table.weight[-1])


def test_the_null_row_is_trained() -> None:
    conditioner = LabelConditioner(num_classes=5, width=8)
    drop_condition(
        conditioner([1, 2], device=CPU), conditioner.null(device=CPU), probability=1.0, generator=keyed(2)
    ).pooled.sum().backward()
    gradient = conditioner.table.weight.grad
    assert gradient is not None
    assert gradient[5].eq(2).all()
    assert gradient[:5].eq(0).all()


@pytest.mark.parametrize("label", [5, -1])
def test_a_label_out_of_range_is_named(label: int) -> None:
    conditioner = LabelConditioner(num_classes=5, width=8)
    with pytest.raises(ValueError, match=rf"must be 0 to 4 \(conditioner.num_classes=5\), not {label}$"):
        conditioner([0, label], device=CPU)
    batch = Batch(images=None, positions=torch.arange(2), labels=torch.tensor([0, label]), keys=["a", "b"])
    with pytest.raises(
        ValueError, match=f"^data.shards: sample b has the class {label}, and classes are 0 to 4 "
    ):
        conditioner.inputs(batch)


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU, where its values must not be read."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def test_on_a_gpu_a_label_that_is_one_too_large_is_not_the_null_condition() -> None:
    conditioner = LabelConditioner(num_classes=5, width=8)
    with pytest.raises(IndexError):
        conditioner(torch.tensor([5]).as_subclass(OnGPU), device=CPU)


def test_the_empty_caption_is_null() -> None:
    conditioner = TextConditioner(encoder=LetterEncoder())
    assert conditioner.null(device=CPU).pooled.tolist() == [[0.0]]


def test_a_conditioner_names_what_the_data_lacks() -> None:
    images, positions = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    captioned = Batch(images=images, positions=positions, captions=["a"])
    labelled = Batch(images=images, positions=positions, labels=torch.tensor([3]))
    text, labels = TextConditioner(encoder=LetterEncoder()), LabelConditioner(num_classes=5, width=8)
    assert text.inputs(captioned) == ["a"]
    assert torch.as_tensor(labels.inputs(labelled)).tolist() == [3]
    with pytest.raises(ValueError, match="needs captions, and the data has none"):
        text.inputs(labelled)
    with pytest.raises(
        ValueError, match=r"needs class labels, and the data has none; set data\.decoder\.label_key"
    ):
        labels.inputs(captioned)


def test_cached_features_are_used_as_they_are() -> None:
    conditioner = TextConditioner(encoder=LetterEncoder())
    cached = Condition(
        pooled=torch.tensor([[7.0]]).bfloat16(),
        tokens=torch.tensor([[[7.0]]]).half(),
        mask=torch.tensor([[True]]),
    )
    batch = Batch(images=None, positions=torch.zeros(1, dtype=torch.long), captions=["a"], condition=cached)
    cond = conditioner(conditioner.inputs(batch), device=CPU)
    assert cond.tokens is not None
    assert cond.mask is not None
    assert (cond.pooled.item(), cond.tokens.item(), cond.mask.item()) == (7, 7, True)
    assert (cond.pooled.dtype, cond.tokens.dtype, cond.mask.dtype) == (
        torch.float32,
        torch.float32,
        torch.bool,
    )
    # What says nothing is never cached.
    dropped = drop_condition(cond, conditioner.null(device=CPU), probability=1.0, generator=keyed(1))
    assert dropped.pooled.item() == 0


@pytest.mark.parametrize("drop", [-0.1, 1.1])
def test_the_drop_is_a_probability(drop: float) -> None:
    with pytest.raises(ValueError, match=f"conditioner.drop={drop} must be a probability"):
        LabelConditioner(num_classes=5, width=8, drop=drop)
    with pytest.raises(ValueError, match=f"conditioner.drop={drop} must be a probability"):
        TextConditioner(encoder=LetterEncoder(), drop=drop)
