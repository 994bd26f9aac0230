"""The code that lies sealed beside weights: exactly what was sealed, and nothing that Python could import instead."""

import hashlib
import logging
import os
from pathlib import Path

import pytest

import lumbar
from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar.bundle import code_hash
from lumbar.bundle.code_hash import code_sha256, digest, own_code_sha256, sealed_hashes, shipped_hashes
from lumbar.bundle.manifest import read_manifest, verify, write_manifest
from lumbar.errors import ManifestError
from lumbar.run import predict

SOURCES = {"__init__.py": '"""Tiny."""\n', "a.py": "", "a-b.py": "x = 1\n", "a/__init__.py": "", "page.j2": "{{ x }}"}


def write_package(folder, sources=SOURCES):
    for place, text in sources.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    return folder


@pytest.fixture(params=["code/lumbar", "lumbar"])
def package(request, tmp_path):
    """The package inside a sealed bundle, in both forms that a mount may have; its bundle is ``tmp_path``."""
    package = write_package(tmp_path / request.param)
    hashes = shipped_hashes(package)
    write_bundle(tmp_path, code_sha256=digest(hashes), code_files=hashes)
    return package


def test_the_rule_is_that_of_bundles_sealed_before(tmp_path):
    package = write_package(tmp_path / "lumbar")
    lines = [f"{place}\0{hashlib.sha256(SOURCES[place].encode()).hexdigest()}\n" for place in sorted(SOURCES)]
    assert code_sha256(package) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert digest(sealed_hashes(package)) == code_sha256(package)


def test_caches_and_editors_backups_are_not_part_of_what_would_be_sealed(tmp_path):
    package = write_package(tmp_path / "lumbar")
    before = code_sha256(package)
    write_package(package, {"__pycache__/a.cpython-311.pyc": "", ".hidden.py": "", "a.py~": "", "b.so": ""})
    assert code_sha256(package) == before
    write_package(package, {"b.py": ""})
    assert code_sha256(package) != before


def test_sealed_code_is_verified_with_and_without_its_folder_and_bytecode_is_left_out(package, tmp_path):
    write_package(package, {"__pycache__/a.cpython-311.pyc": "junk", "a/__pycache__/x.pyc": "junk"})
    assert verify(tmp_path).weights


def test_bundles_without_a_list_of_files_are_verified_all_the_same(package, tmp_path):
    data = read_manifest(tmp_path).data
    data.pop("code_files")
    write_manifest(tmp_path / "weights_manifest.json", data)
    assert verify(tmp_path).weights
    (package / "b.so").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"lumbar: found code hash .*\(not of the kinds that ship: b\.so\)"):
        verify(tmp_path)


def edit(package):
    (package / "__init__.py").write_text('"""Tinier"""\n')


def swap_bytes_only(package):
    path = package / "a-b.py"
    stat = path.stat()
    path.write_text("x = 2\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = {
    "edited": (edit, r"changed __init__\.py"),
    "edited, same size and time": (swap_bytes_only, r"changed a-b\.py"),
    "removed": (lambda p: (p / "a.py").unlink(), r"missing a\.py"),
    "renamed": (lambda p: (p / "a.py").rename(p / "c.py"), r"extra c\.py; missing a\.py"),
    "moved": (lambda p: (p / "a.py").rename(p / "a" / "a.py"), r"extra a/a\.py; missing a\.py"),
    "extra module": (lambda p: (p / "numpy.py").write_text(""), r"extra numpy\.py"),
    "extra extension": (lambda p: (p / "a.abi3.so").write_bytes(b""), r"extra a\.abi3\.so"),
    "bytecode without source": (lambda p: (p / "b.pyc").write_bytes(b""), r"extra b\.pyc"),
    "path file": (lambda p: (p / "x.pth").write_text("import os\n"), r"extra x\.pth"),
    "hidden file": (lambda p: (p / ".a.py").write_text(""), r"extra \.a\.py"),
    "name that is no text": (lambda p: (p / os.fsdecode(b"\xff\x1b.py")).write_text(""), r"extra \\udcff\\x1b\.py"),
    "link to a file": (lambda p: (p / "l.py").symlink_to("/etc/hostname"), r"l\.py: found a symbolic link"),
    "link to a folder": (lambda p: (p / "sub").symlink_to("/etc"), r"sub: found a symbolic link"),
    "FIFO": (lambda p: os.mkfifo(p / "f.py"), r"f\.py: found a FIFO"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_code_that_is_not_what_was_sealed_is_refused_by_name(package, tmp_path, name):
    change, message = CHANGES[name]
    change(package)
    with pytest.raises(ManifestError, match=message) as caught:
        verify(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


SHADOWS = ["json.py", "numpy.py", "sitecustomize.py", "torch/__init__.py", "cv2.abi3.so", "json.pyc", "x.pth", "timm/x"]


@pytest.mark.parametrize("place", [*SHADOWS, *(f"code/{place}" for place in SHADOWS)])
def test_a_module_beside_the_package_is_refused_by_name(tmp_path, place):
    package = write_package(tmp_path / "code" / "lumbar")
    write_bundle(tmp_path, code_sha256=code_sha256(package))
    verify(tmp_path)
    write_package(tmp_path, {place: ""})
    name = place.removesuffix("/__init__.py").removesuffix("/x")
    with pytest.raises(ManifestError, match=rf"found {name.replace('.', '[.]')} beside code/lumbar, expected no other"):
        verify(tmp_path)


def test_a_second_package_is_refused(package, tmp_path):
    write_package(tmp_path / ("lumbar" if package.parent != tmp_path else "code/lumbar"))
    with pytest.raises(ManifestError, match="found lumbar beside code/lumbar"):
        verify(tmp_path)


def test_a_package_that_is_a_link_is_refused(package, tmp_path):
    package.rename(tmp_path / "weights" / "elsewhere")
    package.symlink_to(tmp_path / "weights" / "elsewhere")
    with pytest.raises(ManifestError, match="lumbar: found a symbolic link, expected a folder"):
        verify(tmp_path)


def test_code_that_nobody_sealed_and_a_list_that_lies_are_refused(package, tmp_path):
    data = read_manifest(tmp_path).data
    (tmp_path / "weights_manifest.json").unlink()
    write_manifest(tmp_path / "weights_manifest.json", data | {"code_sha256": "", "code_files": None})
    with pytest.raises(ManifestError, match=r"found code hash \w{12}…, expected none"):
        verify(tmp_path)
    with pytest.raises(ManifestError, match=r"code_files: found hash \w{12}…, expected code_sha256"):
        write_manifest(tmp_path / "weights_manifest.json", data | {"code_files": {"a.py": "0" * 64}})


def test_a_package_without_end_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(code_hash, "MAX_FILES", 4)
    with pytest.raises(ManifestError, match="found more than 4 entries"):
        verify(tmp_path)


def run_and_log(tmp_path, caplog, code):
    write_bundle(tmp_path / "bundle", code_sha256=code)
    root = write_cohort(tmp_path / "data", {1: ()})
    with caplog.at_level(logging.INFO, "lumbar"):
        _, record = predict(root, tmp_path / "bundle", chain=FAKE)
    return [entry.getMessage() for entry in caplog.records if "own code" in entry.getMessage()], record


def test_a_run_of_other_code_than_was_sealed_says_so_once_and_goes_on(tmp_path, caplog):
    lines, record = run_and_log(tmp_path, caplog, "ab" * 32)
    own = own_code_sha256()[:12]
    assert lines == [f"this run uses its own code {own}, not the code abababababab that the bundle was sealed with"]
    assert record["versions"]["code"] == lines[0]
    assert record["studies"][0]["status"] == "predicted"


def test_the_hash_of_the_running_code_is_that_of_the_whole_package():
    package = Path(lumbar.__file__).resolve().parent
    assert {"__init__.py", "__main__.py", "bundle/code_hash.py", "dicom/header.py"} <= shipped_hashes(package).keys()
    assert own_code_sha256() == code_sha256(package)


def test_a_run_of_the_sealed_code_says_nothing(tmp_path, caplog):
    lines, record = run_and_log(tmp_path, caplog, own_code_sha256())
    assert lines == []
    assert "code" not in record["versions"]


def test_a_bundle_of_weights_alone_needs_no_code(tmp_path):
    assert verify(write_bundle(tmp_path, code_sha256="ab" * 32)).weights
    (tmp_path / "notes.py").write_text("")  # nothing of this folder is ever put on the path
    assert verify(tmp_path).weights
