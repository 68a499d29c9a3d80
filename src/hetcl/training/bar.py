"""The live display: one line with a bar that fits any terminal, and under it what else there is room for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.text import Text

from hetcl.quantities import duration

NARROWEST, WIDEST = 10, 40
"""Columns of the bar itself."""
NAME = 20
"""Columns of the name, at most."""
SETTLED = 3.0
"""Seconds after which the time that is left can be judged by the steps alone."""


class Layout(NamedTuple):
    """What the display holds in some number of columns."""

    name: str
    bar: int
    """Columns of the bar, with a space before it."""
    filled: int
    """Of these, how many stand for what is done."""
    after: str
    """Per cent, time left and figures."""
    below: str
    """The second line, or nothing."""


def layout(
    name: str, share: float, short: Sequence[str], below: Sequence[str], columns: int, *, indent: int = 2
) -> Layout:
    """Name, bar and per cent always; of ``short`` as many as fit, the first first; of ``below`` whatever fits.

    Args:
        share: of the work that is done, 0 to 1.
        columns: of the terminal; the last one stays free, or some terminals would break the line.
    """
    columns, name = columns - 1, name[:NAME]
    after = f" {int(100 * share):3d}%"
    for word in short:
        if len(name) + 1 + NARROWEST + len(after) + 2 + len(word) > columns:
            break
        after += f"  {word}"
    bar = max(0, min(WIDEST, columns - len(name) - 1 - len(after)))
    second = ""
    for word in below:
        if indent + len(second) + 2 + len(word) <= columns:
            second += f"  {word}" if second else word
    return Layout(name, bar, int(share * bar), after, " " * indent + second if second else "")


class Bar:
    """What :func:`layout` says, drawn by rich in the terminal's width of that moment.

    Args:
        name: of the work.
        done, total: steps.
    """

    def __init__(self, name: str, done: int, total: int) -> None:
        self.name, self.done, self.total = name, done, total
        self.left = ""
        """The time that is left, in words; empty: judged by the steps since the start."""
        self.short: Sequence[str] = ()
        self.below: Sequence[str] = ()
        self._began = done, time.monotonic()

    def _left(self) -> str:
        done, seconds = self.done - self._began[0], time.monotonic() - self._began[1]
        if self.left or done < 2 or seconds < SETTLED or self.done >= self.total:
            return self.left
        return f"{duration(seconds / done * (self.total - self.done))} left"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        short = [word for word in (self._left(), *self.short) if word]
        found = layout(self.name, self.done / max(1, self.total), short, self.below, options.max_width)
        full, empty = ("#", "-") if options.ascii_only else ("━", "━")
        line = Text(f"{found.name} ", no_wrap=True, overflow="crop")
        line.append(full * found.filled, "bar.complete")
        line.append(empty * (found.bar - found.filled), "bar.back")
        yield line.append(found.after)
        if found.below:
            yield Text(found.below, "dim", no_wrap=True, overflow="crop")
