"""Names to things: one table a kind of thing, and ``pkg.module:Thing`` wherever a name is accepted.

Tables are plain dicts ``{name: "pkg.module:Thing"}`` next to what they list; nothing registers itself at import.
A name is resolved when it is used, so that a table of heavy modules stays cheap to read.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def is_dotted(name: str) -> bool:
    """True for ``pkg.module:Thing``."""
    return ":" in name


def load_dotted(path: str) -> Any:
    """Imports ``pkg.module:Thing``; raises ValueError that names the part that is missing or broken."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{path!r} is not of the form 'package.module:Thing'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path!r}: no module named {error.name!r} (is it on PYTHONPATH?)") from error
    except (ImportError, SyntaxError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path!r}: module {module_name!r} cannot be imported ({reason}); mend it") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ValueError(f"{path!r}: module {module_name!r} has no attribute {attribute!r}") from error


def unknown_name(what: str, name: str, table: Mapping[str, str]) -> str:
    """The text of the error for a name that is in no table."""
    guess = nearest(name, table)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(sorted(table))}; or 'package.module:Thing')"


def resolve(what: str, name: str, table: Mapping[str, str]) -> Any:
    """The thing that ``name`` stands for: an entry of ``table`` or a dotted path. Raises ValueError for neither."""
    if is_dotted(name):
        return load_dotted(name)
    if name not in table:
        raise ValueError(unknown_name(what, name, table))
    return load_dotted(table[name])
