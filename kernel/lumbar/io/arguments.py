"""Command lines that answer a slip of the pen with the word that was probably meant."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

_LIKE = 0.6  # share of letters in common from which a word counts as a slip of another


def nearest(word: str, known: Iterable[str], like: float = _LIKE) -> str | None:
    """The known word that is most like ``word``; None where none has the share ``like`` of its letters in common."""
    words = list(known)
    lower = {name.lower(): name for name in reversed(words)}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=like)
    return lower[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)``, to be put behind a refusal; empty where no known word is like it."""
    close = nearest(word, known)
    return f" (did you mean {close}?)" if close else ""


def program(module: str, script: str) -> str:
    """What help and refusals call a program: its installed command, or ``python -m MODULE`` where that was started.

    Args:
        module: such as ``lumbar``.
        script: the name of its command in pyproject.toml, such as ``lumbar``.
    """
    started = os.path.basename(sys.argv[0]) if sys.argv else ""
    return script if os.path.splitext(started)[0] == script and not started.endswith(".py") else f"python -m {module}"


def python_word() -> str:
    """What a printed command begins with, so that it can be pasted: ``.venv/bin/python`` beside it, else ``python``."""
    path = os.path.relpath(sys.executable) if sys.executable else ""
    return path if path and not path.startswith(os.pardir) else "python"


class Parser(argparse.ArgumentParser):
    """``ArgumentParser`` whose refusals of a choice, a command or an option name the nearest one that exists."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        text = f"found {value!r}, expected one of {', '.join(known)}{did_you_mean(str(value), known)}"
        raise argparse.ArgumentError(action, text)

    _given: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ``argparse``'s; what was given is kept, so that a refusal can name a slip in it."""
        self._given = tuple(map(str, sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """As ``argparse``'s; where an option is missing, one that was misspelt is named with it."""
        if "required" in message:
            message += self._slip()
        super().error(message)

    def _slip(self) -> str:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in (given.partition("=")[0] for given in self._given):
            if word.startswith("--") and word != "--" and not any(name.startswith(word) for name in known):
                return f"; there is no option {word}{did_you_mean(word, known)}"
        return ""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ``argparse``'s, but an unknown option is refused with the nearest one."""
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            self._refuse(extra, options)
        return options

    def _refuse(self, extra: list[str], options: argparse.Namespace) -> NoReturn:
        parser = self
        for action in self._actions:  # the options of the command that was named, where there are commands
            if isinstance(action, argparse._SubParsersAction):
                parser = action.choices.get(str(getattr(options, action.dest, "")), parser)
        word = extra[0].partition("=")[0]
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        hint = did_you_mean(word, known) if word.startswith("-") else ""
        parser.error(f"unrecognized arguments: {' '.join(extra)}{hint}")
