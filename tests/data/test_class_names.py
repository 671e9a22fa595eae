"""Names of classes in every form, and samples that carry them; wrong numbers of classes are found."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rfdit.config.build import CONFIG_DIR, build, register
from rfdit.data.class_names import ClassDecoder, read_class_names
from rfdit.data.sample import Decoder
from rfdit.data.skips import SkippedSampleError, SkipReason

FOLDERS = ["n01", "n02", "n10"]
NAMES = ["tench, Tinca tinca", "goldfish", "golden retriever"]
Sample = dict[str, str | bytes]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file of names; returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "names"
        path.write_text(text)
        return str(path)

    return write


def text_file() -> str:
    lines = [f"{folder} {name}" for folder, name in zip(FOLDERS, NAMES)]
    return "\n".join([lines[2], "", *lines[:2]]) + "\n"


@pytest.mark.parametrize("folders", [None, FOLDERS])
@pytest.mark.parametrize(
    "text",
    [text_file(), json.dumps(dict(zip(reversed(FOLDERS), reversed(NAMES)))), json.dumps(NAMES)],
    ids=["text", "object", "list"],
)
def test_every_form_gives_the_names_by_number(
    file: Callable[[str], str], text: str, folders: list[str] | None
) -> None:
    assert read_class_names(file(text), setting="names", folders=folders) == NAMES


def test_a_tree_with_some_of_the_classes_takes_their_names(file: Callable[[str], str]) -> None:
    path = file(text_file())
    assert read_class_names(path, setting="names", folders=["n02", "n10"]) == NAMES[1:]


@pytest.mark.parametrize(
    ("text", "folders"),
    [
        ("red fox Vulpes vulpes\nred panda Ailurus\nred a colour\n", ["red", "red fox", "red panda"]),
        ("red fox\tVulpes vulpes\nred panda\t Ailurus\nred a colour\n", None),
    ],
)
def test_folders_with_spaces(file: Callable[[str], str], text: str, folders: list[str] | None) -> None:
    found = read_class_names(file(text), setting="names", folders=folders)
    assert found == ["a colour", "Vulpes vulpes", "Ailurus"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("n01 a\nn02 b\n", "has no name for 1 of the 3 class folders, the first of them n10$"),
        ('["a", "b"]', "has 2 names for 3 class folders$"),
        ("tench\ngoldfish\n", 'has tench without a name; give a text file with "n01440764 tench'),
        ("\n", "has nothing without a name"),
        ('{"n01": ', "is not JSON: "),
        ('{"0": ["n01", "tench"]}', "does not name classes by strings; give"),
        ("[]", "does not name classes by strings"),
    ],
)
def test_other_forms_are_named(file: Callable[[str], str], text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.reader\.names=\S* {sentence}"):
        read_class_names(file(text), setting="data.reader.names", folders=FOLDERS)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"^names=/no/where is not a file; give a text file"):
        read_class_names("/no/where", setting="names")


def test_a_class_has_its_name_as_caption(
    file: Callable[[str], str], make_sample: Callable[[int], Sample]
) -> None:
    decoder = ClassDecoder(names=file(text_file()))
    assert isinstance(decoder, Decoder)
    sample = decoder(make_sample(2), (8, 8))
    assert (sample.key, sample.label, sample.caption) == ("000002", 2, "golden retriever")
    assert sample.image is not None
    assert sample.image[0, 0, 0] == 2


def test_the_name_may_be_in_the_shard_or_nowhere(make_sample: Callable[[int], Sample]) -> None:
    sample = ClassDecoder(caption_key="txt")(make_sample(7), (8, 8))
    assert (sample.label, sample.caption) == (7, "number 7")
    assert ClassDecoder()(make_sample(7), (8, 8)).caption is None
    labelled = {**make_sample(7), "json": b'{"label": 4}'}
    assert ClassDecoder(label_key="json.label")(labelled, (8, 8)).label == 4


@pytest.mark.parametrize("number", [3, -1])
def test_a_class_beyond_the_models_stops_the_run(
    file: Callable[[str], str], make_sample: Callable[[int], Sample], number: int
) -> None:
    wrong = {**make_sample(5), "cls": str(number).encode()}
    sentence = (
        rf"^data\.shards: sample 000005 has the class {number} in data\.decoder\.label_key=cls, and classes are "
        r"0 to 2 \(conditioner\.num_classes=3\)$"
    )
    for decoder in (ClassDecoder(num_classes=3), ClassDecoder(names=file(text_file()))):
        with pytest.raises(ValueError, match=sentence):
            decoder(wrong, (8, 8))


def test_names_must_be_as_many_as_classes(file: Callable[[str], str]) -> None:
    path = file(text_file())
    ClassDecoder(names=path, num_classes=3)
    sentence = r"^data\.decoder\.names=\S* has 3 classes, and conditioner\.num_classes=1000; give"
    with pytest.raises(ValueError, match=sentence):
        ClassDecoder(names=path, num_classes=1000)
    with pytest.raises(ValueError, match=r"caption_key=txt are both set; class names come from one of them$"):
        ClassDecoder(names=path, caption_key="txt")


def test_samples_are_skipped_as_ever(make_sample: Callable[[int], Sample]) -> None:
    sample = make_sample(1)
    for missing, reason in (("cls", SkipReason.MISSING_LABEL), ("png", SkipReason.MISSING_IMAGE)):
        less = {name: value for name, value in sample.items() if name != missing}
        with pytest.raises(SkippedSampleError) as error:
            ClassDecoder()(less, (8, 8))
        assert error.value.reason == reason


@pytest.mark.parametrize(("data", "counting"), [("imagenet", "reader"), ("imagenet_wds", "decoder")])
@pytest.mark.parametrize(
    ("overrides", "classes"),
    [(["conditioner=labels", "model=dit"], 1000), (["conditioner=text"], None)],
    ids=["labels", "text"],
)
def test_the_presets_take_the_number_of_classes_from_the_conditioner(
    data: str, counting: str, overrides: list[str], classes: int | None
) -> None:
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[f"data={data}", "run_dir=x", "data.shards=x", *overrides])
    node = OmegaConf.to_container(cfg, resolve=True)["data"]
    assert build(node[counting]).num_classes == classes
    assert isinstance(build(node["decoder"]), Decoder)
    assert not build(node["filters"]).active
