"""Tables whose columns are aligned: for a terminal, and as Markdown."""

from collections.abc import Collection, Sequence


def console_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return the rows as lines for a terminal, with two spaces between the columns.

    Args:
        rows: Cells of each row, the head first; equally many in each.
        right: Numbers of the columns that are aligned to the right.
    """
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned(rows, right))


def markdown_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return the rows as the lines of a Markdown table; arguments as for `console_table`."""
    head, *body = _aligned(rows, right)
    rule = ["-" * len(cell) for cell in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _aligned(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[list[str]]:
    """Return the cells padded to the width of their columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
