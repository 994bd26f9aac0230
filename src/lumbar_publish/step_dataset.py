"""Create or version the dataset, and see that Kaggle serves it whole."""

from __future__ import annotations

import re
import time

from lumbar_publish.client import LONG_S, KaggleError, Reply, Trouble, wait_for
from lumbar_publish.publication import AGAIN, Publication
from lumbar_publish.remote import missing_files, newest_hash
from lumbar_publish.seal import DATASET_METADATA

_PROCESSING_LIMIT_S = 3600.0
_SHOWING_LIMIT_S = 300.0  # from an upload until Kaggle admits that there is such a dataset
_STATUSES = r"^(not_yet_persisted|blobs_\w+|individual_blobs_\w+|ready|failed|error|deleted|reprocessing)$"


def run(publication: Publication) -> None:
    """Upload unless this manifest is there already; end when Kaggle serves it whole.

    Raises:
        KaggleError: it did not get there; says what to do.
    """
    name = publication.dataset
    exists = is_ready(publication) is not None
    before = None
    if exists:
        what = f"processing of dataset {name}"
        wait_for(lambda: is_ready(publication) or None, what, _PROCESSING_LIMIT_S, publication.log)
        before = newest_hash(publication.client, name)
        if before == publication.sealed.manifest_hash:
            lacking = missing_files(publication.client, name, publication.sealed.folder)
            if not lacking:
                publication.note(uploaded_after=None)
                publication.log(f"dataset {name}: {publication.mark} is there already, nothing to upload")
                return
            publication.log(f"dataset {name}: {publication.mark} lacks {_some(lacking)} there: uploading it whole")
    # An upload that Kaggle took, and that nobody saw served: for a while the version before it may still be.
    if exists and publication.noted("uploaded_after") == [before]:
        publication.log(f"dataset {name}: {publication.mark} was uploaded before: waiting for it")
    else:
        _upload(publication, exists)
        publication.note(uploaded_after=[before])
    _wait_served(publication, before)
    publication.note(uploaded_after=None)


def is_ready(publication: Publication) -> bool | None:
    """Whether the newest version is processed; None when there is no such dataset (or none that we may see).

    Raises:
        KaggleError: Kaggle could not process it, or no answer.
    """
    try:
        reply = publication.client.ask("datasets", "status", publication.dataset)
    except KaggleError as error:
        if error.trouble in (Trouble.MISSING, Trouble.FORBIDDEN):  # Kaggle does not say which
            return None
        raise
    words = re.findall(_STATUSES, reply.out, re.MULTILINE | re.IGNORECASE)
    status = words[-1].lower() if words else ""
    if status in ("failed", "error", "deleted"):
        name = publication.dataset
        publication.note(uploaded_after=None)  # nothing to wait for
        raise KaggleError(
            f"dataset {name}: status {status}: remove that version on kaggle.com/datasets/{name}, {AGAIN}"
        )
    return status == "ready"


def _upload(publication: Publication, exists: bool) -> None:
    verb = ("version", "-m", publication.notes) if exists else ("create",)
    folder = str(publication.sealed.folder)
    reply = publication.client.act(
        "datasets", verb[0], "-p", folder, *verb[1:], "--dir-mode", "zip", limit_s=LONG_S, progress=True, check=False
    )
    # First what was lost on the way: some clients create the version all the same, and exit 0.
    lost = sorted(set(re.findall(r"Upload unsuccessful: (\S+)", reply.text)))
    if lost:
        what = f"upload of {_some(lost)} to {publication.dataset}"
        raise KaggleError(f"{what} failed half-way: check the network, {AGAIN}")
    if reply.returncode:
        raise reply.error()
    if "is being created" not in reply.text or "creation error" in reply.text:
        raise reply.error(f"the dataset was not {'versioned' if exists else 'created'}: mend that, {AGAIN}")
    unsent = [entry for entry in _top_level(publication) if not _was_sent(entry, reply)]
    if unsent:
        raise KaggleError(f"{_some(unsent)} never reached {publication.dataset}: {AGAIN}")


def _top_level(publication: Publication) -> list[str]:
    """Names under which the client uploads what lies in the sealed folder."""
    entries = sorted(entry for entry in publication.sealed.folder.iterdir() if entry.name != DATASET_METADATA)
    return [f"{entry.name}.zip" if entry.is_dir() else entry.name for entry in entries]


def _was_sent(entry: str, reply: Reply) -> bool:
    return f"Upload successful: {entry} " in reply.out


def _wait_served(publication: Publication, before: str | None) -> None:
    """Wait until what Kaggle serves is what was sent: right after the upload it may still serve the one ``before``."""
    name, sent = publication.dataset, publication.sealed.manifest_hash
    start_s = time.monotonic()

    def look() -> bool | None:
        ready = is_ready(publication)
        if ready is None and time.monotonic() - start_s > _SHOWING_LIMIT_S:
            raise KaggleError(f"dataset {name}: uploaded, but Kaggle shows none: check that the owner is you, {AGAIN}")
        if not ready:
            return None
        found = newest_hash(publication.client, name)
        if found not in (None, before, sent):
            raise KaggleError(f"dataset {name}: Kaggle serves manifest {found[:12]}, sent was {sent[:12]}: {AGAIN}")
        return found == sent or None

    wait_for(look, f"processing of dataset {name}", _PROCESSING_LIMIT_S, publication.log)
    lacking = missing_files(publication.client, name, publication.sealed.folder)
    if lacking:
        raise KaggleError(f"dataset {name}: Kaggle does not list {_some(lacking)}: {AGAIN}")
    publication.log(f"dataset {name}: {publication.mark} is published")


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
