"""Where the ``kaggle`` client would find credentials, and how to hide their values in output."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

_AGAIN = "then run this again"
_HIDDEN = "[hidden]"
_SHORTEST_SECRET = 6  # shorter values would also replace ordinary words


@dataclass(frozen=True)
class Credentials:
    """Where a token and a key lie; the client takes the token first, even an expired one. Values are never kept."""

    token_at: str | None
    key_at: str | None

    @classmethod
    def locate(cls) -> Credentials:
        """Look where the client looks."""
        token, key = None, None
        if os.environ.get("KAGGLE_API_TOKEN"):
            token = "KAGGLE_API_TOKEN"
        for name in ("access_token", "access_token.txt"):
            if token is None and _text(_home() / name):
                token = f"~/.kaggle/{name}"
        if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
            key = "KAGGLE_KEY"
        elif (path := _key_file()) is not None:
            key = str(path)
        elif _text(_home() / "credentials.json"):
            key = "~/.kaggle/credentials.json"  # of `kaggle auth login`
        return cls(token, key)

    def advice(self) -> str:
        """What to do about a refusal (401), in one line."""
        if self.token_at and self.key_at:
            return (
                f"Kaggle refused the token in {self.token_at} (401), which the client takes before the key in "
                f"{self.key_at}: remove or renew that token, then run this again"
            )
        if self.token_at or self.key_at:
            where = self.token_at or self.key_at
            return f"Kaggle refused the credentials in {where} (401): make new ones at kaggle.com/settings, {_AGAIN}"
        return f"no Kaggle credentials: set KAGGLE_API_TOKEN (kaggle.com/settings) or run `kaggle auth login`, {_AGAIN}"


def hide_secrets(text: str) -> str:
    """Replace every credential's value in ``text``."""
    for secret in _secrets():
        text = text.replace(secret, _HIDDEN)
    return text


def _secrets() -> list[str]:
    token = os.environ.get("KAGGLE_API_TOKEN", "")  # a token, or a file that holds it
    values = [os.environ.get("KAGGLE_KEY", ""), token, _text(Path(token)) if token else ""]
    values += [_text(_home() / name) for name in ("access_token", "access_token.txt")]
    for path in (_key_file(), _home() / "credentials.json"):
        try:
            stored = json.loads(_text(path)) if path else {}
        except ValueError:
            stored = {}
        if isinstance(stored, dict):
            values += [str(value) for name, value in stored.items() if "key" in name or "token" in name]
    return sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


def _home() -> Path:
    return Path.home() / ".kaggle"


def _key_file() -> Path | None:
    folders = [Path(os.environ["KAGGLE_CONFIG_DIR"])] if os.environ.get("KAGGLE_CONFIG_DIR") else []
    folders += [_home(), Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"]
    return next((folder / "kaggle.json" for folder in folders if (folder / "kaggle.json").is_file()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
