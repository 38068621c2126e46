"""HTML and SVG by function calls. Text is escaped unless it is already `Html`, so forgetting to escape is not possible.

Plain calls instead of a template engine: no dependency, and what a model wrote can never become markup.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

VOID = {"meta", "br", "hr", "col"}
# A control or a bidirectional override in a model's response would garble the page around it.
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Markup that is finished."""

    __slots__ = ()


Child = str | float | None | Iterable["Child"]


def text(value: object) -> Html:
    """`value` as text: escaped, with characters that cannot be shown replaced."""
    return Html(html.escape(UNSHOWN.sub("\ufffd", str(value)), quote=True))


def el(tag: str, *children: Child, **attributes: object) -> Html:
    """An element. Attributes: `class_` is class, `_` stands for `-`; None leaves one out."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items() if value is not None)
    if tag in VOID:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{join(children)}</{tag}>")


def join(children: Child) -> Html:
    """Children in order: Html as it is, lists flattened, None left out, the rest as text."""
    if isinstance(children, Html):
        return children
    if children is None:
        return Html("")
    if isinstance(children, Iterable) and not isinstance(children, str):
        return Html("".join(join(child) for child in children))
    return text(children)


def table(heads: Sequence[str], rows: Sequence[Sequence[Child]]) -> Html:
    """A table that scrolls where the page is narrow."""
    head = el("thead", el("tr", [el("th", h, scope="col") for h in heads]))
    return el("div", el("table", head, el("tbody", [el("tr", [el("td", cell) for cell in row]) for row in rows])), class_="scroll")


def number(value: float, digits: int = 3) -> str:
    """A figure with about `digits` significant ones and a true minus sign: 0.4213 -> 0.421, 12345.6 -> 12,346."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) or abs(value) >= 10**digits:
        shown = f"{value:,.0f}"
    elif 0 < abs(value) < 1e-3:
        shown = f"{value:.1e}"
    else:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        shown = f"{value:.{max(digits - whole, 0)}f}"
    return shown.replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign, three decimals."""
    return f"{value:+.3f}".replace("-", "−")
