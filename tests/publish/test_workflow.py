"""``examples/publish.yml``: a workflow that GitHub accepts, and whose commands this repository has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lumbar_publish.cli import _parser
from lumbar_publish.kaggle.credentials import Credentials

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "publish.yml"


@pytest.fixture(scope="module")
def workflow() -> dict:
    return YAML(typ="safe").load(EXAMPLE.read_text(encoding="utf-8"))


def steps(workflow: dict, job: str) -> list[dict]:
    return workflow["jobs"][job]["steps"]


def commands(workflow: dict) -> list[str]:
    return [step["run"] for job in workflow["jobs"] for step in steps(workflow, job) if "run" in step]


def checked_by_schema(path: Path) -> subprocess.CompletedProcess[str]:
    """GitHub's own rules, as a schema that the checker brings with it: no network."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_github_takes_it(tmp_path: Path) -> None:
    done = checked_by_schema(EXAMPLE)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "publish.yml"
    broken.write_text(EXAMPLE.read_text().replace("runs-on:", "run-on:"))
    assert checked_by_schema(broken).returncode == 1


def test_every_push_is_rehearsed_and_only_a_version_tag_is_published(workflow: dict) -> None:
    assert workflow["on"] == {"push": {"branches": ["**"], "tags": ["v*"]}}
    assert "if" not in workflow["jobs"]["rehearse"]
    assert any(step.get("run", "").startswith("make dry-run") for step in steps(workflow, "rehearse"))
    publish = workflow["jobs"]["publish"]
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert publish["needs"] == "rehearse"
    assert publish["concurrency"]["cancel-in-progress"] is False


def test_secrets_come_from_the_environment_of_the_step_that_needs_them(workflow: dict) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert not [command for command in commands(workflow) if "${{" in command]  # no text of others in a shell
    assert "secrets." not in EXAMPLE.read_text().replace("${{ secrets.KAGGLE_API_TOKEN }}", "")
    holders = [step for job in workflow["jobs"] for step in steps(workflow, job) if "secrets." in str(step)]
    assert [step["env"]["KAGGLE_API_TOKEN"] for step in holders] == ["${{ secrets.KAGGLE_API_TOKEN }}"]


def test_its_variables_are_those_that_are_looked_for(workflow: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    (step,) = [step for step in steps(workflow, "publish") if "build_dataset.py" in step.get("run", "")]
    for name in step["env"]:
        monkeypatch.setenv(name, "x" * 12)
    assert Credentials.locate().token_at == "KAGGLE_API_TOKEN"


def test_its_commands_are_this_repositorys(workflow: dict) -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for command in commands(workflow):
        words = command.replace('"', "").split()
        if words[0] == "make":
            assert words[1] in targets
        elif "build_dataset.py" in command:
            options = _parser().parse_args(words[words.index("build_dataset.py") + 1 :])
            assert options.publish
            assert options.tag
            assert options.message
    assert any("build_dataset.py" in command for command in commands(workflow))
