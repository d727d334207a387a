"""Datasets of the hub, with a stand-in for the hub; and one that no hub gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlinf_vlm.data.files import HubDataset
from rlinf_vlm.data.hub import first_hub_row, load_hub
from rlinf_vlm.data.sources import Table
from tests.unit.data.data_files import (
    FEATURE_ROWS,
    KEY,
    failure,
    write_with_features,
)


class Hub:
    """Stands in for ``datasets.load_dataset``: one dataset, in a file."""

    def __init__(self, file: Path, cache: Path) -> None:
        self.file, self.cache = file, cache

    def __call__(self, name: str, split: str, streaming: bool = False, cache_dir: Path | None = None) -> Any:
        import datasets

        if (name, split) != ("org/name", "train"):
            raise ValueError(f"Unknown split {split!r}.\nShould be one of ['train'].")
        return datasets.load_dataset(
            "parquet", data_files=[str(self.file)], split=split, streaming=streaming, cache_dir=str(self.cache)
        )


def test_a_hub_dataset_gives_rows_like_files(tmp_path: Path) -> None:
    load = Hub(write_with_features(tmp_path / "a.parquet", FEATURE_ROWS), tmp_path / "cache")
    hub = HubDataset(name="org/name", split="train")
    assert first_hub_row(hub, KEY, load) == FEATURE_ROWS[0]
    table = Table(load_hub(hub, KEY, ["image"], load=load), hub)
    assert [table[index] for index in range(2)] == [{"image": row["image"]} for row in FEATURE_ROWS]
    assert table.locate(1) == ("org/name:train", 1)
    assert table.folder_of(1) is None


def test_hub_failures_are_one_line(tmp_path: Path) -> None:
    load = Hub(write_with_features(tmp_path / "a.parquet", FEATURE_ROWS), tmp_path / "cache")
    text = failure(load_hub, HubDataset(name="org/name", split="tset"), KEY, None, None, load)
    assert "'org/name' with a split 'tset' (Unknown split 'tset'. Should be one of ['train'].)" in text
    assert "no column 'imag'; there are: question, image, frames" in failure(
        load_hub, HubDataset(name="org/name", split="train"), KEY, ["imag"], None, load
    )


def test_a_dataset_that_no_hub_gives_is_a_user_error(tmp_path: Path) -> None:
    code = (
        "from rlinf_vlm.data.sources import open_table\n"
        "from rlinf_vlm.types import UserError\n"
        "try:\n    open_table('org/name', 'data.train_data_paths')\n"
        "except UserError as error:\n    raise SystemExit(str(error))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "data.train_data_paths: no path 'org/name' exists, and the hub gives no dataset" in done.stderr
