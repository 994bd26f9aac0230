"""What was decoded by other code is not taken for today's: the key sees every module from file to pixel."""

import shutil
import subprocess
import sys
from pathlib import Path

import lumbar
from lumbar_train.data.code_key import WITHOUT_PIXELS, code_key, used_sources

ROOTS = ("lumbar.study", "lumbar.stages.eight_bit")
MAKES_PIXELS = {
    "lumbar.dicom.codecs.rle",
    "lumbar.dicom.codecs.jpeg_lossless_kernels",
    "lumbar.dicom.parsing.scan",
    "lumbar.dicom.assembly.ordering",
    "lumbar.dicom.assembly.padding",
    "lumbar.dicom.header",
    "lumbar.dicom.series",
    "lumbar.geometry",
    "lumbar.resample",
    "lumbar.stages.eight_bit",
    "lumbar.study",
}


def test_the_key_covers_every_module_on_the_way_and_no_message():
    used = used_sources(ROOTS)
    assert used.keys() >= MAKES_PIXELS
    package = Path(lumbar.__file__).parent
    all_of_dicom = {path for path in (package / "dicom").rglob("*.py")}
    assert all_of_dicom <= set(used.values())
    assert not used.keys() & WITHOUT_PIXELS
    assert not any(name.startswith(("lumbar.output", "lumbar.workers", "lumbar.models")) for name in used)


def test_a_change_in_any_of_them_changes_the_key(tmp_path):
    shutil.copytree(Path(lumbar.__file__).parent, tmp_path / "lumbar", ignore=shutil.ignore_patterns("__pycache__"))
    source = str(Path(code_key.__wrapped__.__code__.co_filename).parents[2])
    script = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {source!r}]
from lumbar_train.data.code_key import code_key, used_sources
roots = {ROOTS!r}
keys = [code_key(*roots)]
for name, path in sorted(used_sources(roots).items()):
    before = path.read_bytes()
    path.write_bytes(before + b"# changed\\n")
    keys.append(code_key.__wrapped__(*roots))
    path.write_bytes(before)
print(len(keys), len(set(keys)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    n_keys, n_distinct = map(int, done.stdout.split())
    assert n_keys == n_distinct > 40
