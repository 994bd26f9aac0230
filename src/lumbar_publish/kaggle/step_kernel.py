"""Push the notebook attached to the dataset or model, wait for its run, fetch what it left and check it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil

from lumbar.errors import CohortError
from lumbar_publish.kaggle.client import KaggleError, wait_for
from lumbar_publish.kaggle.image import image_line
from lumbar_publish.kaggle.publication import AGAIN, Publication
from lumbar_publish.kaggle.remote_dataset import parse_json
from lumbar_publish.kaggle.remote_kernel import pushed_version
from lumbar_publish.rehearsal.submission import check_submission
from lumbar_publish.sealing.accelerators import machine_from_metadata
from lumbar_publish.sealing.metadata import write_json
from lumbar_publish.sealing.seal import read_json

MAX_NOTEBOOK_BYTES = 1_000_000  # the server refuses larger ones
_RUN_LIMIT_S = 12 * 3600.0  # queue and run
_PUSH_LIMIT_S, _FETCH_LIMIT_S = 600.0, 1800.0
_RUNNING = ("QUEUED", "RUNNING", "NEW_SCRIPT")


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
    layout = publication.layout
    after = max(int(publication.noted(name) or 0) for name in ("failed_version", "saved_version"))
    version = pushed_version(publication.client, publication.kernel, layout.notebook, layout.kernel_metadata, after)
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
        if _status(publication, version)[0] != "COMPLETE":
            return False
        _fetch(publication, version)
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


def _push(publication: Publication, *options: str) -> int:
    """Push; the version number that Kaggle gave."""
    layout = publication.layout
    size = layout.notebook.stat().st_size
    if size >= MAX_NOTEBOOK_BYTES:
        raise KaggleError(f"{layout.notebook}: {size} bytes, expected less than 1 MB: run `make seal` to make it anew")
    metadata = read_json(layout.kernel_metadata)
    slug, title = str(metadata.get("id", "")).rpartition("/")[2], str(metadata.get("title", ""))
    if as_slug(title) != slug:
        raise KaggleError(
            f"{layout.kernel_metadata}: the title {title!r} leads to the name {as_slug(title)!r}, the id says "
            f"{slug!r}: run `make seal` to make them agree"
        )
    # a run that hangs ends when the competition's time is over, not when the session's is: quota is scarce
    seconds = round(machine_from_metadata(metadata).hours(publication.competition) * 3600)
    folder = str(layout.kernel_metadata.parent)
    reply = publication.client.act("kernels", "push", "-p", folder, "-t", str(seconds), *options, limit_s=_PUSH_LIMIT_S)
    invalid = re.search(r"not valid (dataset|competition|kernel|model) sources.*?: (.*)", reply.text, re.DOTALL)
    if invalid:
        names = invalid[2].splitlines()[0]
        rules = ", accept its rules on kaggle.com" if invalid[1] == "competition" else ""
        raise KaggleError(f"{invalid[1]} sources {names} are not valid{rules}: mend {layout.kernel_metadata}, {AGAIN}")
    pushed = re.search(r"Kernel version (\d+) successfully (?:pushed|saved)", reply.text)
    if pushed is None:
        raise reply.error(f"the notebook was not pushed: mend that, {AGAIN}")
    return int(pushed[1])


def as_slug(title: str) -> str:
    """The name that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _status(publication: Publication, version: int) -> tuple[str, str]:
    """Status of a version's run, in capitals, and Kaggle's reason for a failure (empty without one)."""
    reply = publication.client.ask("kernels", "status", f"{publication.kernel}/{version}")
    status = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', reply.out)
    if status is None:
        raise reply.error(f"no status of {publication.kernel} version {version}: {AGAIN}")
    reason = re.search(r'^Failure message: "(.*)"$', reply.out, re.MULTILINE | re.DOTALL)
    return status[1].upper(), " ".join(reason[1].split()) if reason else ""


def _wait_run(publication: Publication, version: int) -> None:
    def look() -> tuple[str, str] | None:
        status = _status(publication, version)
        return None if status[0] in _RUNNING else status

    what = f"notebook {publication.kernel} version {version}"
    ending, reason = wait_for(look, f"the run of {what}", _RUN_LIMIT_S, publication.log)
    if ending != "COMPLETE":
        with contextlib.suppress(KaggleError):  # what the run left may be nothing
            _fetch(publication, version)
        said = "; ".join(filter(None, (reason, _log_tail(publication))))
        raise _RunFailed(f"{what} ended with {ending}: {said}: see {publication.output}, mend that, {AGAIN}")


def _fetch(publication: Publication, version: int) -> None:
    """Download output and log of a version; what an earlier run left does not stay."""
    shutil.rmtree(publication.output, ignore_errors=True)
    publication.output.mkdir(parents=True)
    publication.client.ask(
        "kernels", "output", f"{publication.kernel}/{version}", "-p", str(publication.output), "-o",
        "--page-size", "200", limit_s=_FETCH_LIMIT_S,
    )  # fmt: skip


def _check_output(publication: Publication, version: int) -> None:
    _fetch(publication, version)
    what = f"notebook {publication.kernel} version {version}"
    submission, record = publication.output / "submission.csv", publication.output / "record.json"
    if not submission.is_file():
        raise _RunFailed(
            f"{what} left no submission.csv: {_log_tail(publication)}: see {publication.output}, mend that, {AGAIN}"
        )
    said = read_json(record) if record.is_file() else {"manifest_hash": publication.sealed.manifest_hash}
    ran = said.get("manifest_hash")
    if ran != publication.sealed.manifest_hash:
        raise _RunFailed(f"{what} ran manifest {str(ran)[:12]}, expected {publication.mark}: run this again")
    try:
        check_submission(submission, competition=publication.competition)
    except CohortError as error:
        raise _RunFailed(f"{what} left an invalid submission: {error}: mend that, {AGAIN}") from None
    publication.log(image_line(said, publication.layout.root / "dist"))


def _log_tail(publication: Publication) -> str:
    """The last line of the run's log, which Kaggle keeps as JSON events."""
    path = publication.output / f"{publication.sealed.dataset.kernel_slug}.log"
    if not path.is_file():
        return "no log"
    text = path.read_text(encoding="utf-8", errors="replace")
    events = parse_json(text)
    if isinstance(events, list):
        text = "".join(str(event.get("data", "")) for event in events if isinstance(event, dict))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "empty log"
