"""From a plain dict (composed YAML) to a Config, and from pydantic's errors to one line a mistake.

``load_block`` does the same for the config of another command, which has a top block of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rlinf_vlm.config.schema import Config
from rlinf_vlm.registry import nearest
from rlinf_vlm.types import UserError

BlockType = TypeVar("BlockType", bound=BaseModel)
Top = type[BaseModel]
"""The class of the whole tree, e.g. Config."""


def load_config(tree: Mapping[str, Any]) -> Config:
    """Validates ``tree``. Raises UserError with one line a mistake: key, value, what is wrong, what the field means."""
    return load_block(tree, Config)


def load_block(tree: Mapping[str, Any], top: type[BlockType]) -> BlockType:
    """``tree`` as a ``top``; errors as of ``load_config``."""
    try:
        return top.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_lines(error, tree, top))) from None


def _lines(error: ValidationError, tree: Mapping[str, Any], top: Top) -> list[str]:
    """One line a mistake. A value that fits no branch of a union has an error for each branch: they share a line."""
    by_key: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors():
        by_key.setdefault(tuple(_yaml_path(item["loc"], tree, top)), []).append(item)
    lines = []
    for path, items in by_key.items():
        deeper = any(other[: len(path)] == path and len(other) > len(path) for other in by_key)
        if deeper and len(items) > 1:
            continue  # the branch that was meant has an error of its own inside
        lines.append(_line(items[0], tree, top, problems=[str(item["msg"]) for item in items]))
    return lines


def _line(item: Any, tree: Mapping[str, Any], top: Top, problems: list[str]) -> str:
    """One pydantic error as ``key=value: problem. Meaning of the field``."""
    path = _yaml_path(item["loc"], tree, top)
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"{key}={_shown(item['input'])}: unknown key{_suggestion(path, top)}"
    meaning = _meaning(path, top)
    if item["type"] == "missing":
        return f"{key}: required but not given. {meaning}".rstrip()
    problem = " or ".join(dict.fromkeys(problems)).removeprefix("Value error, ")
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        return f"{key}.{problem}"  # a block's own check: its message starts with the name of a field of the block
    return f"{key}={_shown(item['input'])}: {problem[:1].lower() + problem[1:]}. {meaning}".rstrip()


def _shown(value: Any) -> str:
    """A value as it would be written, cut where it would fill the line."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _yaml_path(location: tuple[Any, ...], tree: Mapping[str, Any], top: Top) -> list[str]:
    """The part of pydantic's location that exists in the YAML (it appends the names of union branches)."""
    path: list[str] = []
    node: Any = tree
    for part in location:
        inside_mapping = isinstance(node, Mapping)
        if inside_mapping and part not in node and (part not in _fields(path, top)):
            continue  # the name of a union's branch
        if not inside_mapping and not (isinstance(part, int) and isinstance(node, (list, tuple))):
            break
        path.append(str(part))
        node = node.get(part) if inside_mapping else node[part]
    return path


def _fields(path: list[str], top: Top) -> Mapping[str, Any]:
    """The fields of the block at ``path``, which may be one of a list of blocks; empty where there is no block."""
    kind: Any = top
    for part in path:
        if _is_block(kind):
            field = kind.model_fields.get(part)
            kind = field.annotation if field else None
        elif get_origin(kind) is tuple and part.isdigit():
            kind = get_args(kind)[0]
        else:
            return {}
    return kind.model_fields if _is_block(kind) else {}


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _meaning(path: list[str], top: Top) -> str:
    """The docstring of the field at ``path``, on one line; empty for a part of a field."""
    field = _fields(path[:-1], top).get(path[-1]) if path else None
    return " ".join(field.description.split()) if field and field.description else ""


def field_paths(block: Top = Config, prefix: str = "") -> list[str]:
    """Every key of the schema as a dotted path, blocks included."""
    paths: list[str] = []
    for name, field in block.model_fields.items():
        paths.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths += field_paths(field.annotation, f"{prefix}{name}.")
    return paths


def _suggestion(path: list[str], top: Top) -> str:
    """``; did you mean ...?``: the same key in another block, else the nearest key of this block, else of any."""
    by_name = {dotted.rpartition(".")[2]: dotted for dotted in field_paths(top)}
    if path[-1] in by_name:
        return f"; did you mean {by_name[path[-1]]}?"
    siblings = _fields(path[:-1], top)
    guess = nearest(path[-1], siblings)
    if guess:
        return f"; did you mean {'.'.join([*path[:-1], guess])}?"
    elsewhere = nearest(path[-1], by_name)
    if elsewhere:
        return f"; did you mean {by_name[elsewhere]}?"
    return f"; remove it (keys here: {', '.join(siblings)})"
