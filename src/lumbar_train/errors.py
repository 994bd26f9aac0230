"""Errors of training, beside those of ``lumbar.errors``."""

from __future__ import annotations

from lumbar.errors import LumbarError


class TrainingError(LumbarError):
    """A fit that cannot go on: non-finite numbers, a full disk, a checkpoint of another configuration."""


class LeakError(LumbarError):
    """A study that would be scored, or passed to the next stage, by weights that have seen it."""
