"""The HTML page: one file that asks for nothing else, opened from a disk or a server.

    ReportData --write_page--> index.html (page.html with page.css, charts.js, samples.js and the data put in)

Invariants: everything that a run or a model wrote is escaped: as HTML text, or as JSON in ASCII without ``<``, so that
no text can end its element, and half of a surrogate pair stays an escape. A policy in the page forbids every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from toolkits.report.summary import Table

HERE = Path(__file__).resolve().parent


def page(*, title: str, parts: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """The whole page. parts: HTML by the names that page.html gives their places; data: for the scripts."""
    assets = {name: (HERE / name).read_text(encoding="utf-8") for name in ("page.css", "charts.js", "samples.js")}
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        parts,
        title=escape(title),
        style=assets["page.css"],
        scripts=assets["charts.js"] + assets["samples.js"],
        data=script_json(data),
    )


def script_json(data: Any) -> str:
    """JSON to stand inside of a script element: ASCII, and no ``<`` that could end the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def text_html(text: str) -> str:
    """``text`` as HTML; half of a surrogate pair, which no file can hold, as U+FFFD."""
    return escape(text.encode("utf-8", errors="replace").decode("utf-8"))


def table_html(table: Table) -> str:
    """A table that scrolls sideways where it is wide."""
    head = "".join(f'<th scope="col">{text_html(one)}</th>' for one in table.heads)
    body = []
    for cells, strong in zip(table.rows, table.strong, strict=True):
        first, *others = (text_html(cell) for cell in cells)
        mark = ' class="strong"' if strong else ""
        body.append(f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def list_html(items: Sequence[str], mark: str = "notes") -> str:
    """A list; nothing where there are no items."""
    if not items:
        return ""
    return f'<ul class="{mark}">{"".join(f"<li>{text_html(item)}</li>" for item in items)}</ul>'


def folded_html(title: str, text: str) -> str:
    """Text as it is, behind a title that opens it."""
    return f"<details><summary>{text_html(title)}</summary><pre>{text_html(text)}</pre></details>"
