"""What a config's data path stands for: the data files, in a fixed order, or a dataset of the hub.

    "DIR" | "FILE" | "GLOB" | [several] | "org/name[:split]"  -> find_source -> tuple of files | HubDataset

Invariants: the order is that of the list, and sorted inside a folder or a glob, so that every process sees the same
rows; all files have one suffix; no file comes twice; no folder or glob brings in files of several splits, because
training on a test split by accident looks like success. Every error is one line: the key, the value, what is there, the
remedy. Does not open a file.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlinf_vlm.registry import nearest
from rlinf_vlm.types import UserError

SUFFIXES = (".parquet", ".json", ".jsonl", ".arrow")
LISTED = 8
"""Names of a folder that an error shows."""

METADATA_NAMES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What the datasets library writes next to its data files; never rows."""

SPLIT_MARK = re.compile(r"(train|test|validation|val|eval|dev)(?=[\W_\d]|$)", re.IGNORECASE)
"""Start of a file's or folder's name that says which split it belongs to."""

HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>[\w\[\]:%+-]+))?")

DEFAULT_SPLITS = dict.fromkeys(("data.eval_data_paths", "data.val_data_paths", "data.test_data_paths"), "test")
"""Config key -> the split that is read where a hub id names none; train for any other key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A dataset that the hub's client downloads. ``split`` may be a slice such as train[:100]."""

    name: str
    split: str

    def __str__(self) -> str:
        """The form in which a config gives it."""
        return f"{self.name}:{self.split}"


Source = tuple[Path, ...] | HubDataset
"""Where the rows come from."""


def find_source(paths: str | Sequence[str], key: str) -> Source:
    """The files that ``paths``, the value of the config's ``key``, stands for; or the hub dataset.

    A text of the form org/name is a hub id unless a path of that name exists. Raises UserError as ``find_files`` does.
    """
    entries = _entries(paths, key)
    if len(entries) == 1:
        hub = parse_hub_id(entries[0], DEFAULT_SPLITS.get(key, "train"))
        if hub is not None:
            return hub
    return find_files(entries, key)


def parse_hub_id(text: str, default_split: str) -> HubDataset | None:
    """``org/name`` or ``org/name:split`` as a hub dataset; None for what exists, or looks like a path."""
    match = HUB_ID.fullmatch(text)
    if match is None or text.endswith(SUFFIXES) or Path(text).exists():
        return None
    return HubDataset(name=match["name"], split=match["split"] or default_split)


def find_files(paths: str | Sequence[str], key: str) -> tuple[Path, ...]:
    """Data files of a file, a folder (with its subfolders), a glob, or a list of them.

    Raises UserError that names ``key``: a path that does not exist, a folder or glob without data files, a suffix that
    is not read, several suffixes, several splits in one folder or glob, a file that comes twice.
    """
    found: list[Path] = []
    for entry in _entries(paths, key):
        found += _expand(entry, key)
    suffixes = {path.suffix.lower(): path for path in reversed(found)}
    if len(suffixes) > 1:
        examples = " and ".join(str(path) for path in sorted(suffixes.values()))
        raise UserError(
            f"{key} mixes files of several kinds ({examples}); name one kind, for example with a glob such as "
            f"{found[0].parent}/*{found[0].suffix}"
        )
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise UserError(f"{key} names {path} twice; remove one of the entries that hold it")
        seen.add(path.resolve())
    return tuple(found)


def _entries(paths: str | Sequence[str], key: str) -> list[str]:
    entries = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    if not entries or not all(entry.strip() for entry in entries):
        raise UserError(f"{key}={paths!r} names no data; give a file, a folder, a glob, a list of them, or a hub id")
    return entries


def _expand(entry: str, key: str) -> list[Path]:
    """The files of one entry."""
    path = Path(entry).expanduser()
    try:
        path.stat()
    except FileNotFoundError:
        pass  # a glob, or told below
    except (OSError, ValueError) as error:  # a link to itself, a name too long, no permission, a null byte
        raise UserError(f"{key}={entry!r} cannot be looked up: {error}; give another path") from error
    if path.is_dir():
        files = _walk(path)
        if not files:
            raise UserError(
                f"{key}={entry!r} is a folder without data files ({', '.join(SUFFIXES)}; also sought in subfolders); "
                f"it holds {_contents(path)}"
            )
        return _one_split(files, path, key)
    if path.exists():
        return [_readable(path, entry, key)]
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [_readable(match, entry, key) for match in matches if match.is_file()]
        if not files:
            raise UserError(f"{key}={entry!r} matches no file; {_nearby(_fixed_part(path))}")
        return _one_split(files, _fixed_part(path), key)
    raise UserError(f"{key}={entry!r} does not exist; {_nearby(path)}")


def _readable(path: Path, entry: str, key: str) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{key}={entry!r}: {path.name} is no data file that can be read ({', '.join(SUFFIXES)}); convert it, or "
            "name the data files"
        )
    return path


def _walk(root: Path) -> list[Path]:
    """Data files below ``root``, sorted; links are followed, hidden and metadata files left out."""
    files: list[Path] = []
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back to a folder above
            subfolders.clear()
            continue
        visited.add(real)
        saved_by_datasets = "state.json" in names
        for name in names:
            cached = saved_by_datasets and name.startswith("cache-")
            if Path(name).suffix.lower() in SUFFIXES and name[0] != "." and name not in METADATA_NAMES and not cached:
                files.append(Path(folder, name))
    return sorted(files)


def _one_split(files: list[Path], root: Path, key: str) -> list[Path]:
    """``files`` as they are, unless their names, or those of their folders below ``root``, mark several splits."""
    globs: dict[str, str] = {}
    for path in files:
        mark = _split_mark(path.relative_to(root))
        if mark is not None:
            globs.setdefault(mark[0], str(root / mark[1]))
    if len(globs) < 2:
        return files
    wanted = "train" if "train" in key else next(split for split in (*globs, "train") if split != "train")
    suggestion = globs.get(wanted) or next(iter(globs.values()))
    raise UserError(
        f"{key}: {root} holds files of several splits ({', '.join(globs)}), and {key} would read all of them; "
        f"name one split, such as {suggestion} (or list the files of several)"
    )


def _split_mark(relative: Path) -> tuple[str, str] | None:
    """The split that a path's names mark, and a glob for it: ("train", "data/train-*.parquet")."""
    for depth, part in enumerate(relative.parts):
        match = SPLIT_MARK.match(part)
        if match is None:
            continue
        above = Path(*relative.parts[:depth])
        split = match[0].lower()
        split = "validation" if split == "val" else split
        if depth + 1 < len(relative.parts):
            return split, str(above / part)
        rest = part[match.end() : -len(relative.suffix)]
        separator = rest[:1] if rest and not rest[0].isalnum() else ""
        return split, str(above / f"{match[0]}{separator}{'*' if rest else ''}{relative.suffix}")
    return None


def _fixed_part(pattern: Path) -> Path:
    """The folder that a glob starts from."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _nearby(path: Path) -> str:
    """What is there instead, as a remedy."""
    folder = next(above for above in [path.absolute(), *path.absolute().parents] if above.is_dir())
    missing = path.absolute().relative_to(folder).parts
    guess = nearest(missing[0], [entry.name for entry in folder.iterdir()]) if missing else None
    hint = f"did you mean {folder / guess}? " if guess else ""
    return f"{hint}{folder} holds {_contents(folder)}"


def _contents(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more if names else "nothing"
