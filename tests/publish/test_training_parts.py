"""Parts of a training on Kaggle: the notebook's text, the session there, wheels, and the staged dataset."""

from __future__ import annotations

import ast
import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from lumbar.errors import ManifestError
from lumbar_publish.kaggle.client import Client
from lumbar_publish.names import COMPETITION, Layout
from lumbar_publish.sealing.accelerators import accelerator
from lumbar_publish.training import session as sessions
from lumbar_publish.training.notebook import Session
from lumbar_publish.training.plan import MANIFEST, Places, Plan, TrainingNames, plan_hash
from lumbar_publish.training.sessions import Sessions, lost_line
from lumbar_publish.training.staging import stage
from lumbar_publish.training.wheels import check_image, needed
from publish.stub_trainer import write_trainer

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST = Session(
    TrainingNames("me", "lumbar-train-demo"), 1, 11.5, accelerator("NvidiaTeslaT4"), "latest", 2, False, COMPETITION,
    "ab" * 32,
)  # fmt: skip


# ---- the notebook -------------------------------------------------------------------------------------------------


def test_training_notebook_is_thin_valid_and_sets_the_cache_before_the_import() -> None:
    page = json.loads(replace(FIRST, number=2).notebook_json())
    nbformat.validate(nbformat.from_dict(page))
    cells = ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code"]
    assert len(page["cells"]) <= 4
    loops = (ast.For, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.comprehension)
    for source in cells:
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, loops)]
    text = "\n".join(cells)
    assert text.index("NUMBA_CACHE_DIR") < text.index("from kaggle_session")
    assert "session=2, hours=11.5, jobs=2" in text


def test_metadata_attaches_code_competition_and_the_session_before() -> None:
    data = replace(FIRST, number=12).metadata()
    assert data["id"] == "me/lumbar-train-demo-12"
    assert data["title"] == "Lumbar train demo 12"
    assert data["dataset_sources"] == ["me/lumbar-train-demo-code"]
    assert data["competition_sources"] == [COMPETITION]
    assert data["kernel_sources"] == ["me/lumbar-train-demo-11"]
    assert data["enable_internet"] is False
    assert data["is_private"] is True
    assert FIRST.metadata()["kernel_sources"] == []


# ---- a session ----------------------------------------------------------------------------------------------------

PLAN = {"recipe": "demo", "arguments": ["--points", "{given}/p.csv"], "competition": "knees", "files": {}}


@pytest.fixture
def kaggle_root(tmp_path: Path) -> Path:
    """What ``/kaggle`` holds for session 2 of a run, and what session 1 left."""
    root = tmp_path / "kaggle"
    data = root / "input" / "competitions" / "knees"
    data.mkdir(parents=True)
    (data / "train.csv").write_text("study_id\n1\n")
    run = root / "input" / "notebooks" / "me" / "knees-1" / "run"
    (run / "axial_all").mkdir(parents=True)
    (run / "axial_all" / "0.safetensors").write_bytes(b"12345")
    (run / "run.lock").write_text("1")
    note = {"schema": 1, "plan": plan_hash(PLAN), "session": 1, "cohort": sessions.cohort_hash(data)}
    sessions.write_evidence(run.parent, note, 0, 60.0)
    return root


def note_of(root: Path) -> dict:
    cohort = sessions.cohort_hash(root / "input" / "competitions" / "knees")
    return {"plan": sessions.plan_hash(PLAN), "session": 2, "cohort": cohort}


@pytest.mark.parametrize("place", ["notebooks/me/knees-1", "knees-1", "datasets/me/knees-output"])
def test_output_of_the_session_before_is_taken_wherever_it_is_mounted(kaggle_root: Path, place: str) -> None:
    target = kaggle_root / "input" / place
    if not target.exists():
        shutil.copytree(kaggle_root / "input" / "notebooks" / "me" / "knees-1", target)
        shutil.rmtree(kaggle_root / "input" / "notebooks")
    assert sessions.find_output(kaggle_root, note_of(kaggle_root)) == target
    assert set(sessions.read_evidence(target / "evidence.json")["files"]) == {"axial_all/0.safetensors"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": "feed"}, "found run "),
        ({"session": 5}, "found session 1, expected 4"),
        ({"cohort": "beefbeefbeefbeef"}, "found cohort "),
    ],
)
def test_an_output_of_another_run_session_or_cohort_is_refused(kaggle_root: Path, changes: dict, message: str) -> None:
    with pytest.raises(sessions.SessionError, match=f"evidence.json: {message}"):
        sessions.find_output(kaggle_root, note_of(kaggle_root) | changes)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"123", "found 3 bytes, expected 5 bytes"), (None, "found no such file, expected 5 bytes")],
)
def test_an_output_that_is_cut_short_is_refused(kaggle_root: Path, data: bytes | None, message: str) -> None:
    path = kaggle_root / "input" / "notebooks" / "me" / "knees-1" / "run" / "axial_all" / "0.safetensors"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(sessions.SessionError, match=f"0.safetensors: {message}"):
        sessions.find_output(kaggle_root, note_of(kaggle_root))


def test_after_sessions_that_were_cut_short_the_latest_usable_output_is_taken(kaggle_root: Path, capsys) -> None:
    first = kaggle_root / "input" / "notebooks" / "me" / "knees-1"
    second = shutil.copytree(first, first.parent / "knees-2")
    note = note_of(kaggle_root) | {"session": 3}
    sessions.write_json(second / "evidence.json", note | {"session": 2, "ended": False})
    assert sessions.find_output(kaggle_root, note, 1) == first
    assert "goes on from session 1: no output of a later one is here" in capsys.readouterr().out
    (second / "run" / "session.json").write_text('{"status": "interrupted"}')
    assert sessions.find_output(kaggle_root, note, 1) == second
    shutil.rmtree(first.parent)
    assert sessions.find_output(kaggle_root, note, 0) is None
    assert "begins from nothing: no output of an earlier session is here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("session", "is_mounted", "began_from", "line"),
    [
        (2, True, 1, ""),
        (2, False, 0, "session 2: began from nothing: what session 1 trained is lost"),
        (3, True, 1, "session 3: went on from session 1: what was trained in between is lost"),
        (3, False, 0, "session 3: began from nothing: what sessions 1 to 2 trained is lost"),
        (1, True, None, ""),
    ],
)
def test_a_session_notes_what_it_began_from_and_at_home_a_line_says_what_is_lost(
    kaggle_root: Path, tmp_path: Path, monkeypatch, session: int, is_mounted: bool, began_from: int | None, line: str
) -> None:
    def trained(command: list[str], log: Path) -> int:
        (log.parent / "run").mkdir()
        (log.parent / "run" / "session.json").write_text('{"status": "whole"}')
        return 0

    monkeypatch.setattr(sessions, "follow", trained)
    if not is_mounted:
        shutil.rmtree(kaggle_root / "input" / "notebooks")
    (kaggle_root / "working").mkdir()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"plan": PLAN}))
    said = sessions.run_session(
        manifest, Path(sessions.__file__).parent, kaggle_root, session=session, hours=1, jobs=1, started_s=0, oldest=0
    )
    assert said.get("from") == began_from
    assert lost_line(session, said.get("from", session - 1)) == line


def test_no_output_and_no_competition_are_said(kaggle_root: Path) -> None:
    note = note_of(kaggle_root)
    shutil.rmtree(kaggle_root / "input" / "notebooks")
    with pytest.raises(sessions.SessionError, match="found none, expected that of session 1: attach the notebook"):
        sessions.find_output(kaggle_root, note)
    with pytest.raises(sessions.SessionError, match="expected the competition hips: attach it"):
        sessions.find_competition(kaggle_root, "hips")


def test_the_training_is_called_offline_with_its_files_its_limit_and_the_run_before(tmp_path: Path) -> None:
    words = sessions.train_command(PLAN, tmp_path, Path("/in"), Path("/out"), "41000s", 2, Path("/before"))
    assert words == [
        "train", "--data", "/in", "--recipe", "demo", "--out", "/out", "--cache", "none", "--jobs", "2",
        "--time-limit", "41000s", "--points", f"{tmp_path}/given/p.csv", "--resume", "/before/run",
    ]  # fmt: skip


def test_lines_of_the_training_are_passed_on_without_progress_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; sys.stdout.write('10 %\\r20 %\\rfit 1 done\\nlast \\x1b[31mline\\n\\n'); sys.exit(3)"
    assert sessions.follow([sys.executable, "-I", "-c", program], tmp_path / "train.log") == 3
    assert capsys.readouterr().out.splitlines()[0] == "fit 1 done"
    assert (tmp_path / "train.log").read_text().splitlines()[0] == "fit 1 done"
    assert sessions.last_line(tmp_path / "train.log") == "last ?[31mline"


# ---- which outputs are gone on from -------------------------------------------------------------------------------

GOOD: dict = {
    "plan": "feed", "session": 2, "cohort": "beef", "exit_status": 0, "files": {"a": [1, "b"]}, "last_line": "the end",
    "run": {"status": "time limit", "sessions": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"run": {"status": "whole"}}, ""),
        ({"run": {"status": "failed"}, "exit_status": 1}, ""),
        ({"run": {"status": "interrupted"}, "exit_status": -15}, ""),
        ({"plan": "dead"}, "evidence.json: found plan dead, expected feed"),
        ({"session": 7}, "evidence.json: found session 7, expected 2"),
        ({"cohort": "dead"}, "evidence.json: found cohort dead, expected beef"),
        ({"files": {}}, "found no run folder, expected run/: the end"),
        ({"files": {"../a": [1, "b"]}}, "found '../a', expected files of run/ with size and hash"),
        ({"files": {"a": "b"}}, "found 'a', expected files of run/"),
        ({"run": {}}, "training ended with exit status 0, its session.json says unknown: the end"),
        ({"run": None}, "training ended with exit status 0, its session.json says unknown: the end"),
        ({"exit_status": 1}, "training ended with exit status 1, its session.json says time limit: the end"),
        ({"run": {"status": "failed", "sessions": 1}, "exit_status": 1}, "session.json says failed: the end"),
    ],
)
def test_only_an_output_of_this_very_run_that_went_further_is_gone_on_from(changes: dict, message: str) -> None:
    layout = Layout(Path("/nowhere"))
    run = Sessions(FIRST, Places(layout, "x"), "feed", Client(), waits=False)
    before = {"cohort": "beef", "run": {"status": "failed", "sessions": 1}}
    problem = run._problem(GOOD | changes, 2, before)
    assert message in problem
    assert bool(message) == bool(problem)


# ---- what is staged -----------------------------------------------------------------------------------------------


def write_wheel(folder: Path, name: str, *requires: str) -> Path:
    path = folder / name
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        lines = ["Metadata-Version: 2.1", "Name: x", "Version: 1", *(f"Requires-Dist: {one}" for one in requires)]
        archive.writestr("x.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_what_trains_needs_nothing_beside_the_image() -> None:
    packages = (REPOSITORY / "kernel" / "lumbar", REPOSITORY / "src" / "lumbar_train")
    check_image(REPOSITORY, packages, ())
    assert {"torch", "timm", "pydicom", "opencv-python-headless", "scikit-learn"} <= needed(packages).keys()


@pytest.mark.parametrize(
    ("wheel", "requires", "message"),
    [
        ("numba-0.62.0-cp312-cp312-manylinux_2_17_x86_64.whl", (), "expected none of numba: the image has numba==0.60"),
        ("x-1.0-cp311-cp311-manylinux_2_17_x86_64.whl", (), "expected a wheel for Python 3.12 on x86-64 Linux"),
        ("x-1.0-cp312-cp312-macosx_11_0_arm64.whl", (), "expected a wheel for Python 3.12 on x86-64 Linux"),
        ("x-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", (), "expected a wheel for Python 3.13 on x86-64 Linux"),
        ("x-1.0-py3-none-any.whl", ("numpy>=2.1",), "needs numpy>=2.1: found numpy 2.0.2"),
        ("x-1.0-py3-none-any.whl", ("leftpad",), "needs leftpad: found neither in constraints-kaggle.txt nor among"),
        ("x.whl", (), "expected NAME-VERSION-PYTHON-ABI-PLATFORM.whl"),
    ],
)
def test_a_wheel_that_the_image_cannot_use_is_refused(
    tmp_path: Path, wheel: str, requires: tuple[str, ...], message: str
) -> None:
    path = write_wheel(tmp_path / "wheels", wheel, *requires)
    with pytest.raises(ManifestError) as refused:
        check_image(REPOSITORY, (), [path])
    assert message in str(refused.value)


def test_wheels_bring_what_the_image_lacks(tmp_path: Path) -> None:
    package = tmp_path / "lumbar_train"
    package.mkdir()
    (package / "a.py").write_text("import json\nimport leftpad\nfrom lumbar import labels\n")
    with pytest.raises(ManifestError, match=r"lumbar_train/a\.py: found an import of leftpad, expected what"):
        check_image(REPOSITORY, [package], [])
    extra = ("numpy>=2", 'pywin32; sys_platform == "win32"', 'pytest; extra == "dev"', "rightpad>=2")
    left = write_wheel(tmp_path / "w", "leftpad-1.0-py3-none-any.whl", *extra)
    right = write_wheel(tmp_path / "w", "rightpad-2.1-cp312-abi3-manylinux2014_x86_64.whl")
    check_image(REPOSITORY, [package], [left, right])


def test_the_same_code_and_options_give_the_same_dataset(layout: Layout, tmp_path: Path) -> None:
    write_trainer(layout.root)
    for file in ("constraints-kaggle.txt", "constraints-kaggle-next.txt"):
        shutil.copy(REPOSITORY / file, layout.root / file)
    names = FIRST.names
    points = tmp_path / "points.csv"
    points.write_text("a\n")
    plan = Plan("demo", ("--points", "{given}/points.csv"), (("points.csv", points),))
    one = stage(layout, names, plan, [], tmp_path / "one")
    two = stage(layout, names, plan, [], tmp_path / "two")
    assert one.sealed.manifest_hash == two.sealed.manifest_hash
    assert one.plan_hash == sessions.plan_hash(json.loads((tmp_path / "one" / MANIFEST).read_text())["plan"])
    times = [{p.relative_to(f): p.stat().st_mtime for p in f.rglob("*")} for f in (tmp_path / "one", tmp_path / "two")]
    assert times[0] == times[1]
    points.write_text("b\n")
    assert stage(layout, names, plan, [], tmp_path / "two").plan_hash != one.plan_hash
