"""A git tag for a publication that was scored: which code, weights and notebook got which score."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from lumbar.bundle.code_hash import shipped_hashes, without_members
from lumbar.bundle.manifest import manifest_hash, read_manifest
from lumbar.errors import LumbarError
from lumbar.io.text import printable
from lumbar_publish.kaggle.credentials import hide_secrets
from lumbar_publish.kaggle.publication import AGAIN, Publication
from lumbar_publish.names import Layout
from lumbar_publish.sealing.seal import read_json

_LIMIT_S = 60.0
_FIRST = 3  # changed files that are named
_SOURCES = ("dataset_sources", "model_sources")
_OUR_LINE = "manifest: "  # in the tag's message; tells whose tag it is


class TagError(LumbarError):
    """The repository cannot be tagged; what was published stands."""


def require_repository(layout: Layout) -> None:
    """Find out before any work whether there is a commit that could be tagged.

    Raises:
        TagError: no git, no repository, or no commit in it.
    """
    _git(layout, "rev-parse", "--verify", "HEAD", hint="--tag needs a git repository with a commit")


def warn_of_changes(publication: Publication) -> None:
    """Say early that the tag will need a commit: scoring takes hours, in which it can be made.

    Raises:
        TagError: git fails.
    """
    if changed := _changes(publication):
        publication.log(f"tag: {_names(changed)} not committed yet: commit before the scores are there")


def run(publication: Publication) -> None:
    """Tag the newest commit, which must be what was published, and print the line for CHANGELOG.md.

    A tag of this very publication that is there already is left alone. Nothing is pushed, no file is changed: the tag
    keeps the line, too.

    Raises:
        TagError: no score yet, changes without a commit, another publication's tag of that name; nothing is lost.
        KaggleError: Kaggle does not say which version the bundle has.
    """
    if not publication.noted("scores"):
        raise TagError(f"no score of {publication.mark}: run `build_dataset.py --publish submit --tag -m NOTES` first")
    store = publication.store
    if store.newest_hash() != publication.sealed.manifest_hash:
        raise TagError(f"{publication.bundle}: found a newer version, expected {publication.mark}: set the tag by hand")
    name, message = _name_and_message(publication, store.version())
    there = _message_of(publication, name)
    if there is None:
        _require_committed(publication)
        _git(publication.layout, "tag", "--annotate", "--cleanup=verbatim", "--file=-", name, given=message)
        publication.log(f"tag {name}: set here; `git push origin {name}` shares it")
    else:
        publication.log(f"tag {name}: is there already")
    publication.log(f"for CHANGELOG.md:\n{(there or message).rstrip().splitlines()[-1]}")


def _name_and_message(publication: Publication, version: int) -> tuple[str, str]:
    """The tag's name, and its message, whose last line is the one for CHANGELOG.md."""
    ref, public, private = map(str, publication.noted("scores"))
    kind, notebook = publication.store.kind, int(publication.noted("kernel_version"))
    day, notes = time.strftime("%Y-%m-%d"), hide_secrets(printable(" ".join(publication.notes.split())))
    message = f"""\
{publication.sealed.dataset}: {kind} version {version}, notebook version {notebook}, public score {public}

{kind}: {publication.store.name} version {version}
notebook: {publication.kernel} version {notebook}
{_OUR_LINE}{publication.sealed.manifest_hash}
submission: {ref}
public score: {public}
private score: {private}

- {kind.capitalize()} version {version} ({day}): notebook version {notebook}, {publication.mark}, \
public score {public}: {notes}
"""
    return f"{publication.sealed.dataset.slug}-{kind}-{version}-notebook-{notebook}", message


def _message_of(publication: Publication, name: str) -> str | None:
    """Message of a tag that is this publication's; None without a tag of that name.

    Raises:
        TagError: it is another's.
    """
    layout = publication.layout
    if not _git(layout, "tag", "--list", name).strip():
        return None
    message = _git(layout, "for-each-ref", "--format=%(contents)", f"refs/tags/{name}")
    if f"{_OUR_LINE}{publication.sealed.manifest_hash}" not in message.splitlines():
        commit = _git(layout, "rev-parse", "--short", f"{name}^{{commit}}").strip()
        raise TagError(
            f"git tag {name}: found at commit {commit} without {publication.mark}, expected none of that name: rename "
            f"or remove it, {AGAIN}; what was published stands"
        )
    return message


def _require_committed(publication: Publication) -> None:
    """The newest commit holds what was published, byte for byte.

    Raises:
        TagError: it does not.
    """
    layout, stands = publication.layout, f"commit, {AGAIN} with --tag; what was published stands"
    if changed := _changes(publication):
        raise TagError(f"git: found changes in {_names(changed)}, expected none: {stands}")
    sealed = read_manifest(publication.sealed.folder)
    code = without_members(sealed.data.get("code_files") or {})  # members' code lies in the bundle alone
    if manifest_hash(layout.root) != sealed.hash or shipped_hashes(layout.kernel) != code:
        raise TagError(f"git: found other code or weights, expected {publication.mark}: {stands}")
    published = [layout.lock, layout.notebook, layout.kernel_metadata, *(layout.kernel / name for name in code)]
    known = set(_git(layout, "ls-files", "-z").split("\0"))
    ignored = [path for path in (file.relative_to(layout.root).as_posix() for file in published) if path not in known]
    if ignored:
        raise TagError(f"git: found {_names(sorted(ignored))} in no commit (ignored?), expected all: {stands}")


def _changes(publication: Publication) -> list[str]:
    """Files that differ from the newest commit, or are in none and not ignored.

    The number of the model's version in the notebook's metadata does not count: publishing writes it, the tag says it.

    Raises:
        TagError: git fails.
    """
    layout = publication.layout
    # -z: names as they are, each after two letters and a blank
    status = _git(layout, "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z", "--", ".")
    top = Path(_git(layout, "rev-parse", "--show-toplevel").rstrip("\n"))
    changed = [os.path.relpath(top / entry[3:], layout.root.resolve()) for entry in status.split("\0") if entry]
    metadata = layout.kernel_metadata.relative_to(layout.root).as_posix()
    if metadata in changed and _differs_in_sources_only(layout, metadata):
        changed.remove(metadata)
    return changed


def _differs_in_sources_only(layout: Layout, metadata: str) -> bool:
    try:
        committed = json.loads(_git(layout, "show", f"HEAD:./{metadata}"))
        here = read_json(layout.kernel_metadata)
        return all(committed.get(name) == value for name, value in here.items() if name not in _SOURCES)
    except (LumbarError, ValueError, AttributeError):
        return False


def _names(files: list[str]) -> str:
    more = f" and {len(files) - _FIRST} more" if len(files) > _FIRST else ""
    return ", ".join(map(printable, files[:_FIRST])) + more


def _git(layout: Layout, *arguments: str, given: str = "", hint: str = "") -> str:
    """Output of a git command in the repository.

    Raises:
        TagError: it failed, in one line.
    """
    command = ["git", "-C", str(layout.root), *arguments]
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S, check=False
        )
    except FileNotFoundError:
        raise TagError("git: no such command, expected one for --tag") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TagError(f"git {arguments[0]}: {error}") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = next((line for line in said if line.startswith(("fatal:", "error:"))), said[-1] if said else "failed")
        advice = hint or f"mend that, {AGAIN}; what was published stands"
        raise TagError(f"git {arguments[0]} in {layout.root}: {why}: {advice}")
    return done.stdout
