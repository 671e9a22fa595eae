"""What shard patterns mean."""

from pathlib import Path

import pytest

from rfdit.data.shards import expand_shards, resolve_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b-1.tar", "b-0.tar", "a-10.tar", "a-9.tar", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(shards: list[str]) -> list[str]:
    return [Path(shard).name for shard in shards]


def test_globs_and_folders_are_sorted(folder: Path) -> None:
    assert names(expand_shards(f"{folder}/b-*.tar")) == ["b-0.tar", "b-1.tar"]
    assert names(expand_shards(str(folder))) == ["a-10.tar", "a-9.tar", "b-0.tar", "b-1.tar"]
    assert names(expand_shards(f"{folder}/b-0.tar")) == ["b-0.tar"]


def test_braces_and_lists_keep_their_order(folder: Path) -> None:
    assert names(expand_shards(f"{folder}/a-{{9..10}}.tar")) == ["a-9.tar", "a-10.tar"]
    assert names(expand_shards([f"{folder}/b-*.tar", f"{folder}/a-9.tar"])) == [
        "b-0.tar",
        "b-1.tar",
        "a-9.tar",
    ]


def test_a_file_may_have_a_globs_characters(tmp_path: Path) -> None:
    (tmp_path / "x[1].tar").touch()
    assert names(expand_shards(f"{tmp_path}/x[1].tar")) == ["x[1].tar"]


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert names(expand_shards("~/a-9.tar")) == ["a-9.tar"]


def test_urls_and_commands_are_expanded_and_not_looked_up() -> None:
    assert expand_shards("https://host/{00..02}.tar") == [f"https://host/0{i}.tar" for i in range(3)]
    assert expand_shards("pipe:aws s3 cp s3://x/{7..8}.tar -") == [
        f"pipe:aws s3 cp s3://x/{i}.tar -" for i in (7, 8)
    ]
    assert expand_shards("pipe:unpack | awk '{print}'") == ["pipe:unpack | awk '{print}'"]


@pytest.mark.parametrize("pattern", ["nowhere/*.tar", "nowhere/{0..3}.tar", "nowhere.tar", []])
def test_no_match_names_the_setting_and_the_pattern(pattern: str | list[str]) -> None:
    with pytest.raises(ValueError, match="matches no file; give a glob") as error:
        expand_shards(pattern, setting="data.val_shards")
    assert str(error.value).startswith(f"data.val_shards={pattern!r}")


def test_one_pattern_of_a_list_without_match_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.shards='.*c-\*\.tar' matches no file"):
        expand_shards([str(folder), f"{folder}/c-*.tar"])


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches no file"):
        expand_shards(str(tmp_path))


def test_gaps_in_a_brace_pattern_are_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 of 4 shards do not exist, the first is .*b-2\.tar"):
        assert names(expand_shards(f"{folder}/b-{{0..3}}.tar")) == ["b-0.tar", "b-1.tar"]


def test_shards_may_be_made_when_asked_for() -> None:
    assert resolve_shards(lambda: ["made.tar"]) == ["made.tar"]
