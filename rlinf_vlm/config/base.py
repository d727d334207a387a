"""The base of every config block: frozen, unknown keys refused, field docstrings kept as descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """One block of the YAML. Nothing assigns to it once it is built."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def merge_alias(values: Any, alias: str, name: str) -> Any:
    """Reads key ``alias`` as ``name``. Raises ValueError when both are given with different values."""
    if not isinstance(values, Mapping) or alias not in values:
        return values
    merged = {key: value for key, value in values.items() if key != alias}
    if name in merged and merged[name] != values[alias]:
        raise ValueError(
            f"{alias}={values[alias]!r} and {name}={merged[name]!r} are two names of one setting; remove {alias}"
        )
    merged[name] = values[alias]
    return merged
