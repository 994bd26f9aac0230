"""Create or version the dataset, and see that Kaggle serves it whole."""

from __future__ import annotations

import re
import time

from lumbar_publish.kaggle import upload
from lumbar_publish.kaggle.client import LONG_S, KaggleError, Reply, Trouble, wait_for
from lumbar_publish.kaggle.publication import AGAIN, Publication
from lumbar_publish.kaggle.remote_dataset import missing_files, newest_hash

_PROCESSING_LIMIT_S = 3600.0
# A dataset that was just created is answered with 404 for a while, as one that there is not.
_SHOWING_LIMIT_S = 300.0
_CREATED_LATELY_S = 3600.0  # of a creation in an earlier run; later than that, 404 means that it is gone
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
                _done(publication)
                publication.log(f"dataset {name}: {publication.mark} is there already, nothing to upload")
                return
            publication.log(
                f"dataset {name}: {publication.mark} lacks {_first_names(lacking)} there: uploading it whole"
            )
    # An upload that Kaggle took, and that nobody saw served: for a while the version before it may still be, or (of a
    # dataset that was created) none at all.
    if publication.noted("uploaded_after") == [before] and (exists or _was_created_lately(publication)):
        publication.log(f"dataset {name}: {publication.mark} was uploaded before: waiting for it")
    else:
        _upload(publication, exists)
        publication.note(uploaded_after=[before], uploaded_s=time.time())
    _wait_served(publication, before)
    _done(publication)


def _done(publication: Publication) -> None:
    publication.note(uploaded_after=None)
    upload.discard(publication)


def _was_created_lately(publication: Publication) -> bool:
    return time.time() - float(publication.noted("uploaded_s") or 0) < _CREATED_LATELY_S


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
    goes_on = upload.prepare(publication)
    folder, name = upload.folder_of(publication), publication.dataset
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    files = upload.names(publication)
    how = "going on with an interrupted upload, what arrived is not sent again" if goes_on else "uploading"
    publication.log(f"dataset {name}: {how}: {len(files)} files, {megabytes:.1f} MB")
    verb = ("version", "-m", publication.notes) if exists else ("create",)
    reply = publication.client.act(
        "datasets", verb[0], "-p", ".", *verb[1:], limit_s=LONG_S, progress=True, check=False,
        folder=folder, scratch=upload.notes_of(publication),
    )  # fmt: skip
    try:
        _require_accepted(publication, exists, reply, files)
    except KaggleError as error:
        # Uploads that Kaggle would not go on with, or files that it would not make a version of: start anew.
        refused = "Upload unsuccessful" not in reply.text and error.trouble in (Trouble.OTHER, Trouble.MISSING)
        if refused or "Server returned" in reply.out:
            upload.discard(publication)
        raise


def _require_accepted(publication: Publication, exists: bool, reply: Reply, files: list[str]) -> None:
    """Believe that Kaggle makes a version of all files only where the client says so of the version and of each.

    Raises:
        KaggleError: it does not.
    """
    lost = sorted(set(re.findall(r"Upload unsuccessful: (\S+)", reply.text)))
    if lost:
        raise KaggleError(
            f"upload of {_first_names(lost)} to {publication.dataset} failed half-way: check the network, {AGAIN}"
        )
    if reply.returncode:
        raise reply.error()
    if not exists and "already in use" in reply.text:
        raise reply.error(f"created a moment ago and not shown yet, or not yours: wait some minutes, {AGAIN}")
    if "is being created" not in reply.text or "creation error" in reply.text:
        raise reply.error(f"the dataset was not {'versioned' if exists else 'created'}: mend that, {AGAIN}")
    unsent = [file for file in files if f"Upload successful: {file} " not in reply.out]
    if unsent:
        raise KaggleError(f"{_first_names(unsent)} never reached {publication.dataset}: {AGAIN}")


def _wait_served(publication: Publication, before: str | None) -> None:
    """Wait until what Kaggle serves is what was sent: right after the upload it may still serve the one ``before``."""
    name, sent = publication.dataset, publication.sealed.manifest_hash
    start_s, waits = time.monotonic(), list[bool]()

    def look() -> bool | None:
        ready = is_ready(publication)
        if ready is None and not waits:
            publication.log(f"dataset {name}: created, not shown yet (404): waiting for Kaggle")
            waits.append(True)
        if ready is None and time.monotonic() - start_s > _SHOWING_LIMIT_S:
            publication.note(uploaded_after=None)
            raise KaggleError(f"dataset {name}: uploaded, but Kaggle shows none: check that the owner is you, {AGAIN}")
        if not ready:
            return None
        served = newest_hash(publication.client, name)
        if served not in (None, before, sent):
            raise KaggleError(f"dataset {name}: Kaggle serves manifest {served[:12]}, sent was {sent[:12]}: {AGAIN}")
        return served == sent or None

    wait_for(look, f"processing of dataset {name}", _PROCESSING_LIMIT_S, publication.log)
    lacking = missing_files(publication.client, name, publication.sealed.folder)
    if lacking:
        raise KaggleError(f"dataset {name}: Kaggle does not list {_first_names(lacking)}: {AGAIN}")
    publication.log(f"dataset {name}: {publication.mark} is published")


def _first_names(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
