"""``--tag``: a publication that was scored gets a git tag, and nothing is lost where it cannot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lumbar_publish.names import Layout
from publish.conftest import Publish, error_line
from publish.kaggle_server import KaggleServer

TAG = "lumbar-kit-dataset-1-notebook-1"


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny repository under git, with an author and nothing of this machine's configuration."""
    for name, value in {
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (layout.root / ".gitignore").write_text("/dist/\n")
    git(layout.root, "init", "-q", "-b", "main")
    return layout.root


@pytest.fixture
def committed(repository: Path, kaggle: KaggleServer, checked: None) -> str:
    """All of it committed, as it was published; the commit."""
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "sealed")
    return git(repository, "rev-parse", "HEAD")


def test_the_tag_says_what_scored_and_again_changes_nothing(
    kaggle: KaggleServer, committed: str, published: str, publish: Publish, layout: Layout
) -> None:
    code, out, err = publish("submit", "--tag")
    assert code == 0, out + err
    assert git(layout.root, "rev-parse", f"{TAG}^{{commit}}") == committed
    assert git(layout.root, "cat-file", "-t", TAG) == "tag"  # annotated
    message = git(layout.root, "tag", "-l", "--format=%(contents)", TAG)
    for line in (
        "tester/lumbar-kit: dataset version 1, notebook version 1, public score 0.355",
        "dataset: tester/lumbar-kit version 1",
        "notebook: tester/lumbar-kit-submission version 1",
        f"manifest: {published}",
        "submission: 1000",
        "public score: 0.355",
        "private score: 0.401",
    ):
        assert line in message.splitlines()
    changelog = out.rstrip().splitlines()[-1]
    assert changelog.startswith("- Dataset version 1 (")
    assert changelog.endswith(f"notebook version 1, manifest {published[:12]}, public score 0.355: first try")
    assert changelog == message.splitlines()[-1]
    assert git(layout.root, "status", "--porcelain") == ""
    before = git(layout.root, "rev-parse", TAG)
    code, out, err = publish("submit", "--tag")
    assert code == 0, out + err
    assert f"tag {TAG}: is there already" in out
    assert out.rstrip().splitlines()[-1] == changelog
    assert git(layout.root, "rev-parse", TAG) == before
    assert len(kaggle.submissions) == 1


@pytest.mark.parametrize("change", ["edited", "new", "staged"])
def test_changes_without_a_commit_are_said_early_and_late_and_lose_nothing(
    kaggle: KaggleServer, committed: str, publish: Publish, layout: Layout, change: str
) -> None:
    path = layout.root / ("naïve notes.txt" if change == "new" else ".gitignore")
    path.write_text("/dist/\n# changed\n")
    if change == "staged":
        git(layout.root, "add", "-A")
    code, out, err = publish("submit", "--tag")
    assert code == 1
    assert f"tag: {path.name} not committed yet: commit before the scores are there" in out
    assert "submission 1000: public score 0.355" in out
    line = error_line(err)
    assert f"git: found changes in {path.name}, expected none: commit, then run this again with --tag" in line
    assert "what was published stands" in line
    assert git(layout.root, "tag", "--list") == ""
    git(layout.root, "add", "-A")
    git(layout.root, "commit", "-q", "-m", "more")
    assert publish("submit", "--tag")[0] == 0
    assert git(layout.root, "tag", "--list") == TAG
    assert len(kaggle.submissions) == 1


def test_code_that_git_ignores_is_no_committed_code(
    repository: Path, kaggle: KaggleServer, checked: None, publish: Publish
) -> None:
    (repository / ".gitignore").write_text("/dist/\nstages/\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "part of it")
    code, _, err = publish("submit", "--tag")
    assert code == 1
    assert "git: found kernel/lumbar/stages/__init__.py in no commit (ignored?), expected all" in error_line(err)
    assert git(repository, "tag", "--list") == ""


def test_a_tag_of_that_name_with_other_content_stays(
    kaggle: KaggleServer, committed: str, published: str, publish: Publish, layout: Layout
) -> None:
    git(layout.root, "tag", "-a", "-m", "mine", TAG)
    code, _, err = publish("submit", "--tag")
    assert code == 1
    line = error_line(err)
    assert f"git tag {TAG}: found at commit {committed[:7]} without manifest {published[:12]}, expected none" in line
    assert git(layout.root, "tag", "-l", "--format=%(contents)", TAG) == "mine"


@pytest.mark.parametrize("lacks", ["git", "repository", "commit"])
def test_where_nothing_can_be_tagged_nothing_is_begun(
    kaggle: KaggleServer, checked: None, publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch, lacks: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    if lacks == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif lacks == "commit":
        subprocess.run(["git", "-C", str(layout.root), "init", "-q"], check=True)
    code, _, err = publish("submit", "--tag")
    assert code == 1
    wanted = {
        "git": "git: no such command, expected one for --tag",
        "repository": "not a git repository (or any of the parent directories): .git: --tag needs a git repository",
        "commit": "Needed a single revision: --tag needs a git repository with a commit",
    }
    assert wanted[lacks] in error_line(err)
    assert not kaggle.calls


def test_without_an_author_the_tag_is_refused_in_one_line(
    kaggle: KaggleServer, committed: str, publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NAME", "EMAIL"):
        monkeypatch.delenv(f"GIT_COMMITTER_{name}")
        monkeypatch.delenv(f"GIT_AUTHOR_{name}")
    git(layout.root, "config", "user.useConfigOnly", "true")
    code, out, err = publish("submit", "--tag")
    assert code == 1
    assert "submission 1000: public score" in out
    assert error_line(err).startswith(f"error: git tag in {layout.root}: fatal: ")
    assert git(layout.root, "tag", "--list") == ""


@pytest.mark.parametrize("arguments", [("dataset", "--tag"), ("kernel", "--no-run", "--tag"), ("--no-run", "--tag")])
def test_a_tag_needs_a_score(kaggle: KaggleServer, publish: Publish, arguments: tuple[str, ...]) -> None:
    code, _, err = publish(*arguments)
    assert code == 1
    assert "--tag names the score: add --publish -m NOTES" in error_line(err)
    assert not kaggle.calls
