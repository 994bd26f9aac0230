"""What the parts of the loopback Kaggle share."""

from __future__ import annotations

USER, TOKEN = "tester", "KGAT_0123456789abcdef"


class Refusal(Exception):
    """An HTTP status with a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
