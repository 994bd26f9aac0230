"""The private dataset with the training code: staged the same each time, checked, and tried before it is uploaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.bundle.code_hash import shipped_files
from lumbar.errors import LumbarError, ManifestError
from lumbar.io.regular_file import file_sha256
from lumbar_publish.files import replaced_folder
from lumbar_publish.names import Layout
from lumbar_publish.sealing.metadata import dataset_metadata, write_json
from lumbar_publish.sealing.seal import DATASET_METADATA, Sealed, read_json
from lumbar_publish.sealing.smoke_test import ONLY_SEALED
from lumbar_publish.training.plan import CODE, GIVEN, MANIFEST, Plan, TrainingNames, plan_hash
from lumbar_publish.training.wheels import check_image

SESSION = "kaggle_session.py"  # the name of session.py there
_EPOCH_S, _SPREAD_S = 1704067200, 1 << 24  # as sealing's: times follow from the content
_CHECK_LIMIT_S = 1800
# The options, read and checked by the code that ships, alone: a slip must not cost a session.
_CHECK = """\
sys.path.insert(0, sys.argv.pop(1))
import json
from lumbar.errors import LumbarError
from lumbar_train.__main__ import TRAIN_OPTIONS, _parser
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.prepare import chosen_recipe
from lumbar_train.stages.pretrained import Start, backbones
try:
    args = _parser().parse_args(sys.argv[1:])
    recipe, start = chosen_recipe(TrainOptions.of(**{name: getattr(args, name) for name in TRAIN_OPTIONS}))
    Start(False, start.files).check(recipe)
except LumbarError as error:
    sys.exit(f"error: {error}")
fetched = sorted({config.name for config in backbones(recipe)} - set(start.files)) if start.is_pretrained else []
print(json.dumps({"fetched": fetched}))
"""


@dataclass(frozen=True)
class Staged:
    """The staged dataset, and the hash by which the outputs of its sessions are known."""

    sealed: Sealed
    plan: dict[str, Any]

    @property
    def plan_hash(self) -> str:
        """Hash of the plan."""
        return plan_hash(self.plan)


def stage(layout: Layout, names: TrainingNames, plan: Plan, wheels: Sequence[Path], folder: Path) -> Staged:
    """Write the dataset into ``folder``: the same inputs, the same bytes.

    Raises:
        ManifestError: what Kaggle's image lacks, a wheel that does not fit it, a file that is not there.
    """
    packages = (layout.kernel, layout.root / "src" / "lumbar_train")
    check_image(layout.root, packages, wheels)
    data = plan.data()
    with replaced_folder(folder) as new:
        code = new / CODE
        for package in packages:
            for source in shipped_files(package):
                _copy(source, code / package.name / source.relative_to(package))
        _copy(Path(__file__).with_name("session.py"), code / SESSION)
        for name, source in plan.files:
            _copy(source, code / "given" / name)
        for wheel in wheels:
            _copy(wheel, code / "wheels" / wheel.name)
        files = {path.relative_to(code).as_posix(): path for path in sorted(code.rglob("*")) if path.is_file()}
        hashes = {name: file_sha256(path) for name, path in files.items()}
        write_json(new / MANIFEST, {"schema": 1, "plan": data, "files": hashes})
        write_json(new / DATASET_METADATA, dataset_metadata(names.dataset))
        stamp_s = _EPOCH_S + int(file_sha256(new / MANIFEST), 16) % _SPREAD_S
        for path in [*new.rglob("*"), new]:
            os.chmod(path, 0o755 if path.is_dir() else 0o644)
            os.utime(path, (stamp_s, stamp_s))
    return describe(folder, names)


def describe(folder: Path, names: TrainingNames) -> Staged:
    """A dataset as it was staged before.

    Raises:
        ManifestError: it is not whole.
    """
    data = read_json(folder / MANIFEST)
    for name, sha256 in data["files"].items():
        path = folder / CODE / name
        if not path.is_file() or file_sha256(path) != sha256:
            raise ManifestError(f"{path}: found another file, expected the one that was staged: --new-code stages anew")
    return Staged(Sealed(folder, names.dataset, file_sha256(folder / MANIFEST), {}), data["plan"])


def check_options(folder: Path, command: Sequence[str]) -> list[str]:
    """Let the staged code read its options; names of the backbones whose weights it would fetch.

    Args:
        folder: the staged dataset.
        command: ``train …`` as it will be called.

    Raises:
        LumbarError: what the training would refuse, in its own words.
    """
    code = folder.resolve() / CODE
    given = [word.replace(GIVEN, f"{code / 'given'}/") for word in command]
    with tempfile.TemporaryDirectory(prefix="lumbar-train-") as scratch:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment.setdefault("NUMBA_CACHE_DIR", scratch)
        words = [sys.executable, "-I", "-B", "-c", ONLY_SEALED + _CHECK, str(code), *given]
        try:
            done = subprocess.run(
                words, cwd=scratch, env=environment, capture_output=True, text=True, timeout=_CHECK_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise LumbarError(f"{code}: the staged code took over {_CHECK_LIMIT_S} s to read its options") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        line = lines[-1].partition("error: ")[2] or lines[-1]
        raise LumbarError(line.replace(f"{code / 'given'}/", ""))
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return [str(name) for name in answer["fetched"]]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise ManifestError(f"{source}: no such file, expected one to take to Kaggle") from None
