"""What a newcomer meets first: help, a slip of the pen, a wrong path. Answered before anything heavy is imported."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lumbar_publish.__main__ import COMMANDS
from lumbar_publish.rehearsal import dry_run

pytestmark = pytest.mark.usefixtures("unmeasured_children")

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch", "torchvision", "timm", "numba", "llvmlite", "cv2", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn",
    "pydicom", "nbformat", "nbclient", "jinja2", "kaggle", "numpy",
)  # fmt: skip
# Runs a command as `python -m` or `python file.py` does, and says on the last line what was imported.
PROBE = """\
import runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
status = 0
try:
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
print("\\nheavy:", *[name for name in %r if name in sys.modules], file=sys.stderr)
sys.exit(status)
""" % (HEAVY,)  # noqa: UP031
BUILD = str(ROOT / "build_dataset.py")
DRY_RUN = "lumbar_publish.rehearsal.dry_run"


def answer(*arguments, through=()):
    """Exit status, output and errors of a command (run through another one), and the heavy packages it imported."""
    command = [*through, sys.executable, "-c", PROBE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    errors, _, heavy = done.stderr.rpartition("\nheavy:")
    return done.returncode, done.stdout, errors, heavy.split()


@pytest.mark.parametrize(
    "arguments",
    [
        ("lumbar", "--help"),
        ("lumbar", "predict", "--help"),
        ("lumbar", "score", "--help"),
        ("lumbar", "inspect", "--help"),
        ("lumbar", "--version"),
        ("lumbar_phantom", "--help"),
        ("lumbar_publish", "--help"),
        ("lumbar_publish", "dry-run", "--help"),
        ("lumbar_publish", "train", "--help"),
        (DRY_RUN, "--help"),
        (BUILD, "--help"),
        ("lumbar_train", "--help"),
        ("lumbar_train", "train", "--help"),
    ],
    ids=lambda words: " ".join(Path(word).name for word in words),
)
def test_help_imports_nothing_heavy(arguments):
    status, out, errors, heavy = answer(*arguments)
    assert (status, errors, heavy) == (0, "", [])
    assert "usage: " in out or out.startswith("lumbar ")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("lumbar", "pedict"), "predict"),
        (("lumbar", "predict", "--data", "d", "--weights", "w", "--out", "o.csv", "--chain", "mian"), "main"),
        (("lumbar", "predict", "--data", "d", "--weights", "w", "--out", "o.csv", "--split", "tran"), "train"),
        (("lumbar", "predict", "--data", "d", "--weights", "w", "--out", "o.csv", "--reprot", "r"), "--report"),
        (("lumbar_phantom", "--out", "o", "--studies", "1", "--sedd", "3"), "--seed"),
        (("lumbar_phantom", "--out", "o", "--studies", "1", "--syntax", "jpeg2000"), "jpeg_2000"),
        (("lumbar_phantom", "--out", "o", "--studies", "1", "--pitfalls", "partial_axia"), "partial_axial"),
        (("lumbar_phantom", "--out", "o", "--studies", "1", "--pitfalls", "non-square"), "non_square"),
        (("lumbar_publish", "dryrun"), "dry-run"),
        ((DRY_RUN, "--data", "d", "--keep-seel"), "--keep-seal"),
        ((BUILD, "--publish", "kernle", "-m", "x"), "kernel"),
        ((BUILD, "--pubish", "-m", "x"), "--publish"),
        (("lumbar_train", "trian"), "train"),
        (("lumbar_phantom", "--out", "o", "--studys", "2"), "--studies"),  # a slip in an option that is required
        (("lumbar", "predict", "--dtaa", "d", "--weights", "w", "--out", "o"), "--data"),
        (("lumbar_train", "train", "--data", "d", "--otu", "o"), "--out"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_the_nearest_name(arguments, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, errors, heavy = answer(*arguments)
    assert status in (1, 2)
    assert (out, heavy) == ("", [])
    assert f"(did you mean {meant}?)" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def as_others():
    """What a command is run through so that permissions count for it, which they do not for root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root may look into every folder")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(
    ("command", "closed"),
    [
        (("lumbar", "predict", "--weights", "w"), "mine"),
        ((DRY_RUN,), "mine"),
        (("lumbar_train", "train"), "mine"),
        (("lumbar_train", "train"), "mine/train_images"),
    ],
    ids=lambda words: words if isinstance(words, str) else words[0],
)
def test_a_folder_that_may_not_be_looked_into_is_one_line(command, closed, tmp_path, as_others, monkeypatch):
    (tmp_path / "mine" / "train_images").mkdir(parents=True)
    (tmp_path / "mine" / "train_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "weights_manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / closed).chmod(0)
    try:
        status, _, errors, _ = answer(*command, "--data", tmp_path / "mine", "--out", "o.csv", through=as_others)
    finally:
        (tmp_path / closed).chmod(0o755)
    assert status == 1
    assert f": {tmp_path / closed}: cannot be read (permission denied), expected a folder " in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(
    "command",
    [
        ("lumbar", "merge", "part.csv"),
        ("lumbar_phantom", "--studies", "1"),
        (DRY_RUN, "--data", "mine"),
        ("lumbar_train", "train", "--data", "mine"),
        ("lumbar_train", "baseline", "--data", "mine"),
        ("lumbar_train", "evaluate", "--data", "mine", "--run", "mine"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_place_that_may_not_be_written_is_one_line(command, tmp_path, as_others, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / "mine" / f"{split}_images").mkdir(parents=True)
        (tmp_path / "mine" / f"{split}_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    (tmp_path / "part.csv").write_text("row_id\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").mkdir(0o555)
    status, _, errors, _ = answer(*command, "--out", "closed/new", through=as_others)
    assert status == 1
    refusal = "--out closed/new: closed cannot be written (permission denied), expected a writable folder"
    assert errors.strip().endswith(refusal)
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make, to compare with")
def test_without_make_a_documented_line_does_the_same():
    words = ["make", "-n", "dry-run", "DATA=my studies"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment).stdout
    line = shlex.split(next(line for line in said.splitlines() if DRY_RUN in line))
    assert line[line.index("-m") :] == ["-m", DRY_RUN, "--data", "my studies"]
    assert COMMANDS["dry-run"] is dry_run.main
    assert ".venv/bin/python -m lumbar_publish dry-run --data mine" in (ROOT / "README.md").read_text("utf-8")


def test_a_word_that_is_like_none_gets_no_guess():
    _, _, errors, _ = answer("lumbar", "predict", "--data", "d", "--weights", "w", "--out", "o", "--chain", "xyz")
    assert "expected one of main, baseline" in errors
    assert "did you mean" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lumbar", "predict", "--data", "nowhere", "--weights", "{bundle}", "--out", "s.csv"), "nowhere: no such"),
        (
            ("lumbar", "predict", "--data", "{bundle}", "--weights", "nowhere", "--out", "s.csv"),
            "cannot be read (No such file or directory)",
        ),
        (("lumbar", "score", "--solution", "a.csv", "--submission", "b.csv"), "a.csv: cannot be read (no such file)"),
        (("lumbar", "inspect", "nowhere"), "nowhere: no such file or folder, expected a DICOM file"),
        (("lumbar_phantom", "--out", "/proc/nowhere", "--studies", "1"), "/proc/nowhere: cannot be written"),
        (("lumbar_publish", "dry-run", "--data", "nowhere"), "nowhere: no such folder"),
        ((DRY_RUN, "--data", "nowhere"), "nowhere: no such folder"),
        ((BUILD, "--run", "nowhere"), "nowhere: no "),
        ((BUILD, "--sample", "nowhere"), "nowhere: no such folder"),
        ((BUILD, "--verify", "nowhere"), "cannot be read (No such file or directory)"),
        (("lumbar_train", "train", "--data", "nowhere", "--out", "o"), "nowhere: no such"),
    ],
)
def test_a_wrong_path_imports_nothing_heavy(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "weights_manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    status, out, errors, heavy = answer(*(word.format(bundle=tmp_path / "bundle") for word in arguments))
    assert (status, out, heavy) == (1, "", [])
    assert errors.startswith(("error: ", "lumbar_train: "))
    assert message in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_phantoms_know_the_names_of_their_transfer_syntaxes_beforehand():
    from lumbar_phantom.__main__ import SYNTAXES
    from lumbar_phantom.dicom_files import SYNTAXES as REAL

    assert tuple(REAL) == SYNTAXES
