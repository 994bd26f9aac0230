"""Which members of an ensemble were left out near the deadline, in how many studies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lumbar.io.text import counted


def add_left_out(counts: dict[str, int], names: Iterable[str]) -> None:
    """Count the members that one more study went without."""
    for name in names:
        counts[name] = counts.get(name, 0) + 1


def left_out_words(counts: Mapping[str, int]) -> str:
    """The members with their numbers of studies, most often first; empty where none was left out."""
    order = sorted(counts.items(), key=lambda pair: -pair[1])
    each = ", ".join(f"{name} in {counted(count, 'study')}" for name, count in order)
    return f"left out for lack of time: {each}" if each else ""
