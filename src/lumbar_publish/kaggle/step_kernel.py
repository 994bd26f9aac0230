"""Push the notebook attached to the dataset or model, wait for its run, fetch what it left and check it."""

from __future__ import annotations

import contextlib
import hashlib

from lumbar.errors import CohortError
from lumbar_publish.kaggle.client import KaggleError
from lumbar_publish.kaggle.image import image_line
from lumbar_publish.kaggle.notebook_run import NotebookRun
from lumbar_publish.kaggle.publication import AGAIN, Publication
from lumbar_publish.rehearsal.submission import check_submission
from lumbar_publish.sealing.accelerators import machine_from_metadata
from lumbar_publish.sealing.metadata import write_json
from lumbar_publish.sealing.seal import read_json


def run(publication: Publication) -> None:
    """Push unless Kaggle's newest version is this very notebook; end when its run left a valid submission.

    A publication that is not to run the notebook ends when a version is saved.

    Raises:
        KaggleError: it was refused, failed, or left no valid submission; says what to do.
    """
    _attach(publication)
    content = _content(publication)
    if not publication.runs_notebook:
        _save(publication, content)
        return
    if publication.noted("pushed") != content:
        version = _accepted_push(publication) or _push(publication)
        publication.note(pushed=content, kernel_version=version, is_checked=False)
    version = int(publication.noted("kernel_version"))
    if not publication.noted("is_checked"):
        try:
            _wait_run(publication, version)
            _check_output(publication, version)
        except _RunFailed:
            # pushing the same again is a new attempt, not a repetition
            publication.note(pushed=None, failed_version=version)
            raise
        publication.note(is_checked=True)
    publication.log(f"notebook {publication.kernel} version {version}: complete, its submission is valid")


def _attach(publication: Publication) -> None:
    """Let the notebook's metadata name what Kaggle serves: of a model, the version that is this very bundle.

    Raises:
        KaggleError: Kaggle does not serve this bundle.
    """
    store = publication.store
    if store.newest_hash() != publication.sealed.manifest_hash:
        raise KaggleError(
            f"{publication.bundle} is not at {publication.mark}: "
            f"run `build_dataset.py --publish {store.kind} -m NOTES` first"
        )
    path = publication.layout.kernel_metadata
    write_json(path, read_json(path) | store.sources())


class _RunFailed(KaggleError):
    """The run of the notebook failed, or left no valid submission."""


def _content(publication: Publication) -> str:
    """What would be pushed, to tell whether it was."""
    layout = publication.layout
    data = layout.notebook.read_bytes() + layout.kernel_metadata.read_bytes()
    return f"{publication.kernel} {hashlib.sha256(data).hexdigest()}"


def _accepted_push(publication: Publication) -> int | None:
    """The version of an accepted push that was never noted: its process was killed, or it was made by hand."""
    after = max(int(publication.noted(name) or 0) for name in ("failed_version", "saved_version"))
    version = _notebook(publication).accepted(after)
    if version is None:
        return None
    what = f"notebook {publication.kernel} version {version} is this very one"
    if _was_only_saved(publication, version):
        publication.log(f"{what}, but left no output (saved without a run?): pushing it")
        return None
    publication.log(f"{what}: not pushed again")
    return version


def _was_only_saved(publication: Publication, version: int) -> bool:
    """Whether a version has ended without leaving a file, as one does that was saved without being run."""
    try:
        if _notebook(publication).status(version)[0] != "COMPLETE":
            return False
        _notebook(publication).fetch(version)
    except KaggleError as error:
        if error.trouble.is_no_answer:
            raise
        return True  # it has no run to ask about
    logs = (f"{publication.sealed.dataset.kernel_slug}.log",)
    return not any(path.name not in logs for path in publication.output.iterdir())


def _save(publication: Publication, content: str) -> None:
    """Save a version without running it, to look at it on Kaggle: no quota is used, and nothing can be submitted."""
    version = publication.noted("saved_version") if publication.noted("saved") == content else None
    if version is None:
        version = _push(publication, "--no-run")
        publication.note(saved=content, saved_version=version)
    publication.log(f"notebook {publication.kernel} version {version}: saved, not run: look at it there")


def _notebook(publication: Publication) -> NotebookRun:
    layout = publication.layout
    return NotebookRun(
        publication.client, publication.kernel, layout.notebook, layout.kernel_metadata, publication.output,
        remake="run `make seal`", log=publication.log,
    )  # fmt: skip


def _push(publication: Publication, *options: str) -> int:
    """Push; the version number that Kaggle gave."""
    # a run that hangs ends when the competition's time is over, not when the session's is: quota is scarce
    machine = machine_from_metadata(read_json(publication.layout.kernel_metadata))
    return _notebook(publication).push(machine.hours(publication.competition) * 3600, *options)


def _wait_run(publication: Publication, version: int) -> None:
    notebook = _notebook(publication)
    ending, reason = notebook.wait(version)
    if ending != "COMPLETE":
        with contextlib.suppress(KaggleError):  # what the run left may be nothing
            notebook.fetch(version)
        said = "; ".join(filter(None, (reason, notebook.log_tail())))
        what = f"notebook {publication.kernel} version {version}"
        raise _RunFailed(f"{what} ended with {ending}: {said}: see {publication.output}, mend that, {AGAIN}")


def _check_output(publication: Publication, version: int) -> None:
    _notebook(publication).fetch(version)
    what = f"notebook {publication.kernel} version {version}"
    submission, record = publication.output / "submission.csv", publication.output / "record.json"
    if not submission.is_file():
        said = _notebook(publication).log_tail()
        raise _RunFailed(f"{what} left no submission.csv: {said}: see {publication.output}, mend that, {AGAIN}")
    noted = read_json(record) if record.is_file() else {"manifest_hash": publication.sealed.manifest_hash}
    ran = noted.get("manifest_hash")
    if ran != publication.sealed.manifest_hash:
        raise _RunFailed(f"{what} ran manifest {str(ran)[:12]}, expected {publication.mark}: run this again")
    try:
        check_submission(submission, competition=publication.competition)
    except CohortError as error:
        raise _RunFailed(f"{what} left an invalid submission: {error}: mend that, {AGAIN}") from None
    publication.log(image_line(noted, publication.layout.root / "dist"))
