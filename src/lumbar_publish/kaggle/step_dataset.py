"""Create or version the dataset (or the model), and see that Kaggle serves it whole."""

from __future__ import annotations

import re
import time

from lumbar_publish.kaggle import upload
from lumbar_publish.kaggle.client import KaggleError, Reply, Trouble, wait_for
from lumbar_publish.kaggle.publication import AGAIN, Publication
from lumbar_publish.kaggle.remote_dataset import BrokenVersionError

_PROCESSING_LIMIT_S = 3600.0
# A dataset that was just created is answered with 404 for a while, as one that there is not.
_SHOWING_LIMIT_S = 300.0
_CREATED_LATELY_S = 3600.0  # of a creation in an earlier run; later than that, 404 means that it is gone


def run(publication: Publication) -> None:
    """Upload unless this manifest is there already; end when Kaggle serves it whole.

    Raises:
        KaggleError: it did not get there; says what to do.
    """
    store, what = publication.store, publication.bundle
    store.prepare(publication.sealed.folder)
    exists = is_ready(publication) is not None
    before = None
    if exists:
        wait_for(lambda: is_ready(publication) or None, f"processing of {what}", _PROCESSING_LIMIT_S, publication.log)
        before = store.newest_hash()
        if before == publication.sealed.manifest_hash:
            lacking = store.missing_files(publication.sealed.folder)
            if not lacking:
                publication.log(f"{what}: {publication.mark} is there already, nothing to upload")
                _done(publication)
                return
            publication.log(f"{what}: {publication.mark} lacks {_first_names(lacking)} there: uploading it whole")
    # An upload that Kaggle took, and that nobody saw served: for a while the version before it may still be, or (of a
    # dataset that was created) none at all.
    if _noted(publication) == [before] and (exists or _was_created_lately(publication)):
        publication.log(f"{what}: {publication.mark} was uploaded before: waiting for it")
    else:
        _upload(publication, exists)
        _note(publication, [before])
    _wait_served(publication, before)
    _done(publication)


def _noted(publication: Publication) -> list[str | None] | None:
    """The hash that was served when this manifest was uploaded, in a list; None without an upload that is awaited."""
    awaited: list[str | None] | None = publication.noted(f"{_prefix(publication)}uploaded_after")
    return awaited


def _note(publication: Publication, before: list[str | None] | None) -> None:
    prefix = _prefix(publication)
    publication.note(**{f"{prefix}uploaded_after": before, f"{prefix}uploaded_s": time.time()})


def _prefix(publication: Publication) -> str:
    return "model_" if publication.target == "model" else ""


def _done(publication: Publication) -> None:
    _note(publication, None)
    upload.discard(publication)
    publication.store.complete(publication.sealed.folder)


def _was_created_lately(publication: Publication) -> bool:
    noted_s = publication.noted(f"{_prefix(publication)}uploaded_s")
    return time.time() - float(noted_s or 0) < _CREATED_LATELY_S


def is_ready(publication: Publication) -> bool | None:
    """Whether the newest version is processed; None when there is no such place (or none that we may see).

    Raises:
        KaggleError: Kaggle could not process it, or no answer.
    """
    try:
        return publication.store.is_ready()
    except BrokenVersionError:
        _note(publication, None)  # nothing to wait for
        raise


def _upload(publication: Publication, exists: bool) -> None:
    goes_on = upload.prepare(publication)
    folder, store = upload.folder_of(publication), publication.store
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    files = upload.names(publication)
    how = "going on with an interrupted upload, what arrived is not sent again" if goes_on else "uploading"
    publication.log(f"{publication.bundle}: {how}: {len(files)} files, {megabytes:.1f} MB")
    reply = store.upload(exists, publication.notes, folder, upload.notes_of(publication))
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
    store = publication.store
    lost = sorted(set(re.findall(r"Upload unsuccessful: (\S+)", reply.text)))
    if lost:
        raise KaggleError(f"upload of {_first_names(lost)} to {store.name} failed half-way: check the network, {AGAIN}")
    if reply.returncode:
        raise reply.error()
    if not exists and "already in use" in reply.text:
        raise reply.error(f"created a moment ago and not shown yet, or not yours: wait some minutes, {AGAIN}")
    if not re.search(store.taken, reply.text) or "creation error" in reply.text:
        raise reply.error(f"the {store.kind} was not {'versioned' if exists else 'created'}: mend that, {AGAIN}")
    unsent = [file for file in files if f"Upload successful: {file} " not in reply.out]
    if unsent:
        raise KaggleError(f"{_first_names(unsent)} never reached {store.name}: {AGAIN}")


def _wait_served(publication: Publication, before: str | None) -> None:
    """Wait until what Kaggle serves is what was sent: right after the upload it may still serve the one ``before``."""
    store, what, sent = publication.store, publication.bundle, publication.sealed.manifest_hash
    start_s, waits = time.monotonic(), list[bool]()

    def look() -> bool | None:
        ready = is_ready(publication)
        if ready is None and not waits:
            publication.log(f"{what}: created, not shown yet (404): waiting for Kaggle")
            waits.append(True)
        if ready is None and time.monotonic() - start_s > _SHOWING_LIMIT_S:
            _note(publication, None)
            raise KaggleError(f"{what}: uploaded, but Kaggle shows none: check that the owner is you, {AGAIN}")
        if not ready:
            return None
        served = store.newest_hash()
        if served not in (None, before, sent):
            raise KaggleError(f"{what}: Kaggle serves manifest {served[:12]}, sent was {sent[:12]}: {AGAIN}")
        return served == sent or None

    wait_for(look, f"processing of {what}", _PROCESSING_LIMIT_S, publication.log)
    _require_complete(publication)
    publication.log(f"{what}: {publication.mark} is published")


def _require_complete(publication: Publication) -> None:
    """Every file is listed, at once or (of a model, which may be unpacked late) after a while.

    Raises:
        KaggleError: some are not; names them.
    """
    store, start_s = publication.store, time.monotonic()

    def look() -> bool | None:
        lacking = store.missing_files(publication.sealed.folder)
        if lacking and time.monotonic() - start_s >= store.unpacking_limit_s:
            raise KaggleError(f"{publication.bundle}: Kaggle does not list {_first_names(lacking)}: {AGAIN}")
        return None if lacking else True

    wait_for(look, f"unpacking of {publication.bundle}", 2 * store.unpacking_limit_s + 60.0, publication.log)


def _first_names(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
