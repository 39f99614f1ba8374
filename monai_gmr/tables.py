"""Tables of text cells, as Markdown and as aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def format_markdown(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """A Markdown table of rows of cells, the header first; columns from ``right`` on are right-aligned.

    Example:
        >>> print(format_markdown([["net", "dice"], ["a | b", "0.900"]], right=1))
        | net | dice |
        |---|---:|
        | a \\| b | 0.900 |
    """
    first = len(rows[0]) if right is None else right
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + "---|" * first + "---:|" * (len(rows[0]) - first)
    return "\n".join([lines[0], rule, *lines[1:]])


def format_aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns of text, two spaces apart, the first ``left`` of them left-aligned. A row of one cell is a title across all columns.

    Example:
        >>> print(format_aligned([["net", "dice"], ["of all cases:"], ["GMRUNet", "0.9"]]))
        net      dice
        of all cases:
        GMRUNet   0.9
    """
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(cell) for cell in column) for column in zip(*full)]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths))
        cells = [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in pairs]
        lines.append(row[0] if len(row) == 1 else "  ".join(cells).rstrip())
    return "\n".join(lines)
