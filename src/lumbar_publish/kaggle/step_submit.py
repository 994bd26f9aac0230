"""Submit the pushed notebook version to the competition and wait for its scores."""

from __future__ import annotations

import re
from typing import Any

from lumbar_publish.kaggle.client import KaggleError, Reply, wait_for
from lumbar_publish.kaggle.kaggle_process import SUBMISSION_ERROR
from lumbar_publish.kaggle.publication import AGAIN, Publication
from lumbar_publish.kaggle.remote_dataset import parse_json

_MOST_CHARACTERS = 500  # of a failure's reason
_LISTING_LIMIT_S = 60.0  # from the submission to its place in the list
_SCORING_LIMIT_S = 12 * 3600.0  # the hidden test runs for up to nine hours


def run(publication: Publication) -> None:
    """Submit unless this version was submitted; wait for the scores and say them.

    ``kaggle competitions submit --wait`` is not used: its process would have to live for hours, and the submission's
    number, which is noted at once here, would go with it.

    Raises:
        KaggleError: nothing to submit, refused, or not scored.
    """
    version = publication.noted("kernel_version")
    if version is None or not publication.noted("is_checked"):
        raise KaggleError(
            f"no checked run of {publication.kernel} at {publication.mark}: "
            "run `build_dataset.py --publish kernel -m NOTES` first"
        )
    mark = f"{publication.mark}, notebook version {version}"
    rows = _rows(publication)
    if _own_submission(publication, mark, rows) is None:
        _submit(publication, int(version), mark, rows)

    def look() -> dict[str, Any] | None:
        row = _own_submission(publication, mark, _rows(publication))
        return row if row and "PENDING" not in str(row.get("status")).upper() else None

    row = wait_for(look, f"scoring of {mark}", _SCORING_LIMIT_S, publication.log)
    if "COMPLETE" not in str(row.get("status")).upper():
        reason = _reason(publication, str(row.get("ref")))
        raise KaggleError(
            f"submission {row.get('ref')} of {mark} ended with {row.get('status')}: {reason}: see "
            f"kaggle.com/competitions/{publication.competition.slug}/submissions, mend that, and publish a new version"
        )
    public, private = (str(row.get(name) or "not shown") for name in ("publicScore", "privateScore"))
    publication.note(scores=[str(row.get("ref")), public, private])
    publication.log(f"submission {row.get('ref')}: public score {public}, private score {private}")


def _submit(publication: Publication, version: int, mark: str, rows: list[dict[str, Any]]) -> None:
    """Submit, and note the submission's number."""
    message = f"{publication.notes} ({mark})"
    reply = publication.client.act(
        "competitions", "submit", publication.competition.slug, "-f", "submission.csv", "-k", publication.kernel,
        "-v", str(version), "-m", message,
    )  # fmt: skip
    said = re.search(r"^Submission ref: (\d+)\s*$", reply.out, re.MULTILINE)
    ref = said[1] if said else _listed(publication, reply, message, mark, {str(row.get("ref")) for row in rows})
    publication.note(submission=[mark, ref])
    publication.log(f"submission {ref}: {mark}, waiting for its scores")


def _listed(publication: Publication, reply: Reply, message: str, mark: str, before: set[str]) -> str:
    """Number of a submission whose answer held none: the new one in the list.

    Raises:
        KaggleError: there is none, so that nothing was submitted.
    """

    def look() -> dict[str, Any] | None:
        rows = [row for row in _rows(publication) if str(row.get("ref")) not in before]
        # A list may cut descriptions short, or leave them out.
        started = [row for row in rows if message.startswith(str(row.get("description") or ""))]
        return _own_submission(publication, mark, rows) or (started[0] if len(started) == 1 else None)

    try:
        row = wait_for(look, "the listing", _LISTING_LIMIT_S, publication.log)
    except KaggleError as error:
        if error.trouble.is_no_answer:
            raise
        raise reply.error(f"Kaggle lists no such submission, {AGAIN}") from None
    return str(row.get("ref"))


def _reason(publication: Publication, ref: str) -> str:
    """Why a submission failed, in one line: what the table of submissions leaves out."""
    try:
        reply = publication.client.ask("competitions", "submission", ref)
        shown = re.search(r"^Error:(.*(?:\n[ \t]+.*)*)", reply.out, re.MULTILINE)
        text = shown[1] if shown else publication.client.ask(SUBMISSION_ERROR, publication.competition.slug, ref).out
    except KaggleError as error:
        text = f"reason unknown ({error})"
    return " ".join(text.split())[:_MOST_CHARACTERS].rstrip(".: ") or "Kaggle gives no reason"


def _own_submission(publication: Publication, mark: str, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Our submission among those listed, recognised by its message or by the number that it was noted with."""
    noted = publication.noted("submission")
    for row in rows:
        if re.search(rf"{re.escape(mark)}(?!\d)", str(row.get("description"))) or noted == [mark, str(row.get("ref"))]:
            return row
    return None


def _rows(publication: Publication) -> list[dict[str, Any]]:
    """Submissions as Kaggle lists them, newest first."""
    slug = publication.competition.slug
    reply = publication.client.ask("competitions", "submissions", slug, "--format", "json", "--page-size", "100")
    rows = parse_json(reply.out)
    if rows is None and "No submissions found" not in reply.out:
        raise reply.error(f"no list of submissions: {AGAIN}")
    return [row for row in rows or [] if isinstance(row, dict)]
