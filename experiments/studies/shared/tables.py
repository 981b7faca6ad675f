"""Tables on the terminal, all of one look."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def new_table(title: str, columns: Sequence[str], texts: int = 1) -> Table:
    """An empty table.

    Args:
        title: one line above it; may be empty.
        columns: their names.
        texts: so many columns come first that hold text, on the left; the
            others hold numbers, on the right.

    Returns:
        The table, to which rows of strings are added.
    """
    made = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=title or None,
        title_justify="left",
    )
    for index, name in enumerate(columns):
        is_text = index < texts
        made.add_column(
            name, no_wrap=is_text, justify="left" if is_text else "right"
        )
    return made


def number(value: float, form: str, missing: str = "") -> str:
    """``value`` in a format; ``missing`` where it is not a number."""
    return missing if math.isnan(value) else format(value, form)
