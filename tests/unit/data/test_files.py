"""What a data path stands for: files, folders, globs, lists and hub ids, and every mistake in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.data.files import HubDataset, find_files, find_source
from rlinf_vlm.types import UserError
from tests.unit.data.data_files import (
    KEY,
    failure,
    touch,
)


def test_a_file_a_folder_a_glob_and_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "b.parquet", "a.parquet", "sub/c.parquet", "README.md", ".cache/d.parquet", ".e.parquet")
    a, b, c = (tmp_path / name for name in ("a.parquet", "b.parquet", "sub/c.parquet"))
    assert find_files(str(b), KEY) == (b,)
    assert find_files(str(tmp_path), KEY) == (a, b, c)
    assert find_files(f"{tmp_path}/*.parquet", KEY) == (a, b)
    assert find_files(f"{tmp_path}/**/*.parquet", KEY) == (a, b, c)
    assert find_files([str(c), str(a)], KEY) == (c, a)
    assert find_files((f"{tmp_path}/sub", str(a)), KEY) == (c, a)


def test_home_and_linked_folders_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "disk/a.parquet", "home/data/b.parquet")
    (tmp_path / "home/data/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "home/data/round").symlink_to(tmp_path / "home/data")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = tmp_path / "home/data"
    assert find_files("~/data", KEY) == (data / "b.parquet", data / "linked/a.parquet")


def test_what_the_datasets_library_writes_beside_its_data_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "data-0.arrow", "cache-12ab.arrow", "state.json", "dataset_info.json")
    assert find_files(str(tmp_path), KEY) == (tmp_path / "data-0.arrow",)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    touch(tmp_path, "train_data/a.parquet")
    text = failure(find_files, f"{tmp_path}/train_dta", KEY)
    assert f"'{tmp_path}/train_dta' does not exist; did you mean {tmp_path}/train_data?" in text
    assert f"{tmp_path} holds train_data/" in text
    assert "does not exist" in failure(find_files, [f"{tmp_path}/train_data", f"{tmp_path}/x.parquet"], KEY)


def test_a_folder_without_data_files(tmp_path: Path) -> None:
    assert failure(find_files, str(tmp_path), KEY).endswith("it holds nothing")
    touch(tmp_path, "notes.txt", "images/a.png")
    text = failure(find_files, str(tmp_path), KEY)
    assert ".parquet, .json, .jsonl, .arrow" in text and "it holds images/, notes.txt" in text


def test_a_glob_without_match(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    text = failure(find_files, f"{tmp_path}/*.jsonl", KEY)
    assert "matches no file" in text and f"{tmp_path} holds a.parquet" in text


def test_suffixes_that_are_not_read_or_differ(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "b.parquet", "c.jsonl")
    assert "a.csv is no data file that can be read" in failure(find_files, f"{tmp_path}/a.csv", KEY)
    assert "a.csv is no data file that can be read" in failure(find_files, f"{tmp_path}/*", KEY)
    text = failure(find_files, str(tmp_path), KEY)
    assert "mixes files of several kinds" in text and "b.parquet and" in text and f"{tmp_path}/*.parquet" in text


@pytest.mark.parametrize(
    ("names", "key", "suggested"),
    [
        (("train-0-of-2.parquet", "train-1-of-2.parquet", "test-0-of-1.parquet"), KEY, "train-*.parquet"),
        (("train-0.parquet", "test-0.parquet"), "data.eval_data_paths", "test-*.parquet"),
        (("data/train-0.parquet", "data/validation-0.parquet"), KEY, "data/train-*.parquet"),
        (("train/0.parquet", "test/0.parquet"), KEY, "train"),
        (("train.parquet", "val.parquet"), KEY, "train.parquet"),
        (("Train_0.parquet", "dev_0.parquet"), KEY, "Train_*.parquet"),
        (("train0.parquet", "eval0.parquet"), KEY, "train*.parquet"),
    ],
)
def test_several_splits_in_a_folder_or_glob(names: tuple[str, ...], key: str, suggested: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    for paths in (str(tmp_path), f"{tmp_path}/**/*.parquet"):
        with pytest.raises(UserError) as caught:
            find_files(paths, key)
        assert "files of several splits" in str(caught.value)
        assert f"such as {tmp_path}/{suggested} (or list" in str(caught.value)
    assert find_files(f"{tmp_path}/{suggested}", key), "the suggestion works"
    assert len(find_files([str(tmp_path / name) for name in names], key)) == len(names), "a list says what it means"


@pytest.mark.parametrize(
    "names", [("train-0.parquet", "train-1.parquet"), ("training.parquet", "testing.parquet"), ("val-0.parquet",)]
)
def test_one_split_is_no_mixture(names: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    assert len(find_files(str(tmp_path), KEY)) == len(names)


def test_a_file_that_comes_twice(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "b.parquet")
    assert "a.parquet twice" in failure(find_files, [str(tmp_path), f"{tmp_path}/a.parquet"], KEY)


@pytest.mark.parametrize("paths", ["", [], [" "]])
def test_no_path_at_all(paths: Any) -> None:
    assert "names no data" in failure(find_files, paths, KEY)


def test_a_hub_id_is_what_looks_like_one_and_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source("org/name", KEY) == HubDataset(name="org/name", split="train")
    for key in ("data.eval_data_paths", "data.test_data_paths"):
        assert find_source(["org/name"], key) == HubDataset(name="org/name", split="test")
    assert find_source("org/name:validation", KEY) == HubDataset(name="org/name", split="validation")
    assert find_source("org/name:train[:10%]", KEY) == HubDataset(name="org/name", split="train[:10%]")
    for path in ("./org/name", "../org/name", "/org/name", "~/org", "org/name.parquet", "a/b/c", "org/*"):
        assert failure(find_source, path, KEY)
    touch(tmp_path, "org/name/a.parquet")
    assert find_source("org/name", KEY) == (Path("org/name/a.parquet"),)
