"""The one place that loads through the datasets library: files into its memory-mapped cache, and datasets of the hub.

Loading the same files again, or from several processes at once, reads the cache that the first one wrote; the library
locks it. Rows come out as plain Python with images undecoded, because they are read past the library's features. Does
not read JSON: its rows need not agree on types, which a column store demands.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlinf_vlm.data.files import HubDataset
from rlinf_vlm.data.integrity import one_line
from rlinf_vlm.types import UserError

LoadFn = Callable[..., Any]
"""``datasets.load_dataset``, or what stands in for it."""


class ArrowRows:
    """Random access to the rows of a ``datasets.Dataset``; pickles and forks as that does (by its cache files)."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index``; images as {"bytes", "path"}."""
        return self._dataset[index].to_pylist()[0]


def load_files(files: Sequence[Path], key: str, columns: Sequence[str] | None, cache_dir: Path | None) -> ArrowRows:
    """Parquet or arrow files as one table, of ``columns`` only (None: all). Raises UserError when they do not agree."""
    kind = files[0].suffix.lower().removeprefix(".")
    options: dict[str, Any] = {"columns": list(columns)} if columns is not None and kind == "parquet" else {}
    # The library takes file names for patterns.
    data_files = [glob.escape(str(file.absolute())) for file in files]
    dataset = _load(_load_dataset(), key, kind, data_files=data_files, split="train", cache_dir=cache_dir, **options)
    return ArrowRows(dataset if columns is None else _select(dataset, columns, key))


def load_hub(
    hub: HubDataset,
    key: str,
    columns: Sequence[str] | None,
    cache_dir: Path | None = None,
    load: LoadFn | None = None,
) -> ArrowRows:
    """A dataset of the hub, downloaded unless it is in the cache. Raises UserError that names ``key``."""
    dataset = _load(load or _load_dataset(), key, hub.name, split=hub.split, cache_dir=cache_dir)
    return ArrowRows(dataset if columns is None else _select(dataset, columns, key))


def first_hub_row(hub: HubDataset, key: str, load: LoadFn | None = None) -> Mapping[str, Any]:
    """The first row of a dataset of the hub, without downloading the rest. Raises UserError that names ``key``."""
    split = hub.split.partition("[")[0]  # a streamed split cannot be sliced
    stream = _load(load or _load_dataset(), key, hub.name, split=split, streaming=True)
    for table in stream.with_format("arrow"):
        return table.slice(0, 1).to_pylist()[0]
    raise UserError(f"{key}={str(hub)!r} has no rows; name another split")


def _load_dataset() -> LoadFn:
    import datasets

    return datasets.load_dataset


def _load(load: LoadFn, key: str, name: str, **options: Any) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        with _without_progress_bars():
            return load(name, **options)
    except (DatasetsError, ValueError, OSError, pa.ArrowException) as error:
        reason = one_line(error.__cause__ or error)
        if "data_files" in options:
            raise UserError(
                f"{key}: the {name} files do not load as one table ({reason}); give files of the same columns and "
                "types, and check the space of the cache folder (HF_DATASETS_CACHE)"
            ) from error
        raise UserError(
            f"{key}: no path {name!r} exists, and the hub gives no dataset {name!r} with a split "
            f"{options['split']!r} ({reason}); mend the path, or download the dataset and give its folder"
        ) from error


def _select(dataset: Any, columns: Sequence[str], key: str) -> Any:
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise UserError(f"{key}: no column {missing[0]!r}; there are: {', '.join(dataset.column_names)}")
    return dataset.select_columns(list(columns))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Every rank loads; their bars would fill the log."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
