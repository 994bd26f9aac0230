"""Rules for values that come from a file: a type, a range or a pattern, and how a message says what was expected."""

from __future__ import annotations

import math
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lumbar.errors import ManifestError

_SHOWN = 60  # characters of a wrong value that a message keeps
# Control characters, invisible and bidirectional marks, lone surrogates, line and paragraph separators.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _SHOWN
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A wrong value as a message shows it: short, in one line, without control characters."""
    try:
        text = _short.repr(value)
    except ValueError:  # Python refuses to write out whole numbers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if is_printable(text) else ascii(text)[1:-1]


def is_printable(text: str) -> bool:
    """Whether a text holds neither control characters nor invisible marks nor lone surrogates."""
    return text.isprintable() or not any(unicodedata.category(letter) in _UNPRINTABLE for letter in text)


class Rule(Protocol):
    """What a value must be."""

    @property
    def expected(self) -> str:
        """What is accepted, in words."""

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""


def require(where: str, value: Any, rule: Rule) -> None:
    """Refuse a value that its rule does not accept.

    Raises:
        ManifestError: naming the place, the value and what was expected.
    """
    if not rule.accepts(value):
        raise ManifestError(f"{where}: found {shown(value)}, expected {rule.expected}")


@dataclass(frozen=True)
class Integer:
    """A whole number within [low, high] that ``step`` divides; True and 1.0 do not count as one."""

    low: int
    high: int
    step: int = 1

    @property
    def expected(self) -> str:
        """What is accepted, in words."""
        kind = "a whole number" if self.step == 1 else f"a multiple of {self.step}"
        return f"{kind} from {self.low} to {self.high}"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and self.low <= value <= self.high and value % self.step == 0


@dataclass(frozen=True)
class Real:
    """A finite number within [low, high], or (low, high] where ``above``."""

    low: float
    high: float
    above: bool = False

    @property
    def expected(self) -> str:
        """What is accepted, in words."""
        start = f"above {self.low:g} up to" if self.above else f"from {self.low:g} to"
        return f"a number {start} {self.high:g}"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        # The range comes first: a whole number of 400 digits cannot be converted to a float.
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        return math.isfinite(value) and not (self.above and value == self.low)


@dataclass(frozen=True)
class Number:
    """Any number, NaN included; its range is checked elsewhere."""

    expected: str = "a number"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Boolean:
    """True or false."""

    expected: str = "true or false"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text:
    """Printable text of at most ``longest`` characters that matches ``pattern`` as a whole (empty: any)."""

    longest: int
    pattern: str = ""
    words: str = ""

    @property
    def expected(self) -> str:
        """What is accepted, in words."""
        return self.words or f"printable text of at most {self.longest} characters"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        if not isinstance(value, str) or len(value) > self.longest or not is_printable(value):
            return False
        return not self.pattern or re.fullmatch(self.pattern, value, re.ASCII) is not None


@dataclass(frozen=True)
class ListOf:
    """A list of ``fewest`` to ``most`` values of one rule; with ``is_set`` no value may come twice."""

    each: Rule
    fewest: int
    most: int
    is_set: bool = False

    @property
    def expected(self) -> str:
        """What is accepted, in words."""
        count = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        return f"{count}{' different' if self.is_set else ''} values, each {self.each.expected}"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        if not isinstance(value, list | tuple) or not self.fewest <= len(value) <= self.most:
            return False
        return all(self.each.accepts(member) for member in value) and not (self.is_set and len(set(value)) < len(value))


@dataclass(frozen=True)
class Null:
    """Null."""

    expected: str = "null"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        return value is None


@dataclass(frozen=True)
class AnyOf:
    """One of several rules."""

    rules: tuple[Rule, ...]

    @property
    def expected(self) -> str:
        """What is accepted, in words."""
        return " or ".join(rule.expected for rule in self.rules)

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        return any(rule.accepts(value) for rule in self.rules)


@dataclass(frozen=True)
class Object:
    """A JSON object; ``require_fields`` checks its values, key by key."""

    optional: Mapping[str, Rule] = field(default_factory=dict)
    expected: str = "an object"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        return isinstance(value, Mapping)


def require_fields(where: str, values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuse an object whose values do not follow the rules; keys without a rule are ignored.

    Args:
        where: what a message puts before a key, such as ``weights[3].``.
        values: the object.
        rules: key → rule; an ``Object`` has rules of its own for the keys inside.

    Raises:
        ManifestError: as ``require``.
    """
    for key, rule in rules.items():
        if key in values:
            require(f"{where}{key}", values[key], rule)
            if isinstance(rule, Object):
                require_fields(f"{where}{key}.", values[key], rule.optional)
