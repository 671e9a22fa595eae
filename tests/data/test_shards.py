"""The meaning of shard patterns."""

from pathlib import Path

import pytest
from braceexpand import braceexpand

from rfdit.data import shards
from rfdit.data.shards import expand_shards, resolve_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b-1.tar", "b-0.tar", "a-10.tar", "a-9.tar", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(found: list[str]) -> list[str]:
    return [Path(shard).name for shard in found]


def test_globs_and_folders_are_sorted(folder: Path) -> None:
    assert names(expand_shards(f"{folder}/b-*.tar")) == ["b-0.tar", "b-1.tar"]
    assert names(expand_shards(str(folder))) == ["a-10.tar", "a-9.tar", "b-0.tar", "b-1.tar"]
    assert names(expand_shards(f"{folder}/b-0.tar")) == ["b-0.tar"]


def test_a_folder_tells_of_shards_that_it_leaves_out(folder: Path) -> None:
    for name in ("c.TAR", "d.tar.gz", "e.tgz"):
        (folder / name).touch()
    with pytest.warns(UserWarning, match=r"^data\.shards=.*: leaving out 2 compressed files, .*d\.tar\.gz"):
        assert names(expand_shards(str(folder)))[-1] == "c.TAR"


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


@pytest.mark.parametrize(
    "pattern",
    [
        "a", "{0..9}", "{000..123}.tar", "{a,b}", "{a{0..9},b{0..3}}x{1,2,3}", "{10..0..-3}", "{a..e..2}", "{abc}",
        "{a,{b,c}}", "{,a}", "x{1..2}{3..4}/{q}", "{a..3}", "{0..0..0}", "{-2..2}", r"{a\,b,c}", r"\{0..3\}",
    ],
)  # fmt: skip
def test_strings_are_counted_before_they_are_made(pattern: str) -> None:
    assert shards._expansions(pattern) == len(list(braceexpand(pattern)))


@pytest.mark.parametrize(
    "pattern", ["{000000..999999999}", "{a,b}" * 100, "https://host/{0..9999}{0..9999}.tar"]
)
def test_a_pattern_of_too_many_shards_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.shards=.* names more than 1,000,000 shards") as error:
        expand_shards(pattern)
    assert pattern in str(error.value)


@pytest.mark.parametrize("pattern", ["nowhere/*.tar", "nowhere/{0..3}.tar", "nowhere.tar", []])
def test_no_match_names_the_setting_and_the_pattern(pattern: str | list[str]) -> None:
    with pytest.raises(ValueError, match="matches no file; give a glob") as error:
        expand_shards(pattern, setting="data.val_shards")
    assert str(error.value).startswith(f"data.val_shards={pattern!r}")


def test_one_pattern_of_a_list_without_match_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.shards='.*c-\*\.tar' matches no file"):
        expand_shards([str(folder), f"{folder}/c-*.tar"])


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no file of this kind of data; it holds no file$"):
        expand_shards(str(tmp_path))


def test_gaps_in_a_brace_pattern_are_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 of 4 shards do not exist, the first is .*b-2\.tar"):
        assert names(expand_shards(f"{folder}/b-{{0..3}}.tar")) == ["b-0.tar", "b-1.tar"]


def test_shards_may_be_made_when_asked_for() -> None:
    assert resolve_shards(lambda: ["made.tar"]) == ["made.tar"]
