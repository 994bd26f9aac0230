"""How much accelerator time is left this week; shown before any of it is spent."""

from __future__ import annotations

from lumbar_publish.kaggle.client import Client, KaggleError, Trouble
from lumbar_publish.kaggle.remote_dataset import parse_json
from lumbar_publish.sealing.accelerators import Accelerator


def quota_line(client: Client, machine: Accelerator, hours: float) -> str:
    """One line about the hours left for a machine on which a run may take ``hours``.

    Raises:
        KaggleError: the account is refused, or Kaggle cannot be reached; any other failure is only mentioned, since
            the quota is for the reader's information.
    """
    if machine.kind == "cpu":
        return f"quota: none needed, the notebook runs on the CPU, at most {hours:g} hours"
    kind = machine.kind.upper()
    try:
        rows = parse_json(client.ask("quota", "--format", "json").out) or []
    except KaggleError as error:
        if error.trouble in (Trouble.CREDENTIALS, Trouble.UNREACHABLE):
            raise
        return f"quota: {kind} hours unknown ({error})"
    row = next((row for row in rows if isinstance(row, dict) and row.get("resource") == kind), None)
    if row is None:
        return f"quota: {kind} hours unknown (Kaggle does not say)"
    left, total, day = (str(row.get(name) or "?") for name in ("remaining", "total", "refreshAt"))
    line = f"quota: {left} of {total} {kind} time left until {day}; a run takes at most {hours:g} hours"
    if left.rstrip("h").strip("0.") == "":
        line += ": Kaggle will refuse the push until then (--accelerator none runs on the CPU)"
    return line
