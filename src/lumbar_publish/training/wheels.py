"""What the training code needs beside Kaggle's image, and wheels that bring it: checked before anything is uploaded."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import sys
import zipfile
from collections.abc import Iterable, Mapping
from email.parser import Parser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from lumbar.errors import ManifestError

# The notebook image as it is, and as its upstream has it next: file of pins, and its Python.
IMAGES = (("constraints-kaggle.txt", (3, 12)), ("constraints-kaggle-next.txt", (3, 13)))
# In the image's lists, or brought by what is (timm and scikit-learn need them), without a pin of ours.
_ALSO_THERE = {
    "albumentations",
    "scikit-learn",
    "scipy",
    "jinja2",
    "pyarrow",
    "huggingface-hub",
    "packaging",
    "pip",
    "pyyaml",
    "pillow",
}
_DISTRIBUTIONS = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn"}  # where the import's name is another
_OPTIONAL = {"tensorboard", "IPython"}  # asked for by an option, or a notebook's own
_OURS = {"lumbar", "lumbar_train"}
_GLIBC = range(17, 36)  # manylinux_2_17 … 2_35, the image's


def pins(path: Path) -> dict[str, Requirement]:
    """What an image holds, by the name of the distribution.

    Raises:
        ManifestError: a line that is no requirement.
    """
    image: dict[str, Requirement] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            requirement = Requirement(text) if text else None
        except InvalidRequirement:
            raise ManifestError(f"{path}: found {text!r}, expected a requirement such as numpy==2.0.2") from None
        if requirement is not None:
            image[canonicalize_name(requirement.name)] = requirement
    return image


def image_names(root: Path) -> set[str]:
    """The distributions that Kaggle's image has, as far as its lists are known.

    Args:
        root: the repository, with the images' pins.
    """
    return {name for file, _ in IMAGES for name in pins(root / file)} | _ALSO_THERE


def needed(packages: Iterable[Path]) -> dict[str, str]:
    """Distributions that packages import, with the file that does; the standard library and ours are left out."""
    names: dict[str, str] = {}
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                for module in modules:
                    top = module.partition(".")[0]
                    if top not in sys.stdlib_module_names and top not in _OURS | _OPTIONAL:
                        names.setdefault(distribution(top), f"{package.name}/{path.relative_to(package).as_posix()}")
    return names


def check_image(root: Path, packages: Iterable[Path], wheels: Iterable[Path]) -> None:
    """See that what the packages import is in Kaggle's image, or among the wheels, and that the wheels fit there.

    Args:
        root: the repository, with the images' pins.
        packages: folders of the packages that go to Kaggle.
        wheels: files ``*.whl`` that go with them.

    Raises:
        ManifestError: something is lacking, a wheel does not fit the image, or would replace what the image has.
    """
    wheels = list(wheels)
    brought = {_name_of(wheel): wheel for wheel in wheels}
    imports = needed(packages)
    images = {file: pins(root / file) for file, _ in IMAGES}
    there = image_names(root)
    for file, version in IMAGES:
        for wheel in wheels:
            _check_wheel(wheel, file, version, images[file], there, brought)
    lacking = [name for name in imports if name not in there | brought.keys()]
    if lacking:
        raise ManifestError(
            f"{imports[lacking[0]]}: found an import of {lacking[0]}, expected what Kaggle's image has "
            f"({IMAGES[0][0]}): add its wheel and those that it needs with --wheels FOLDER"
        )


def _check_wheel(
    wheel: Path,
    file: str,
    version: tuple[int, int],
    image: dict[str, Requirement],
    names: set[str],
    brought: dict[str, Path],
) -> None:
    name, _, _, tags = parse_wheel_filename(wheel.name)
    if name in names:
        pin = str(image.get(name, name))
        raise ManifestError(f"{wheel}: found {wheel.name}, expected none of {name}: the image has {pin} ({file})")
    if not tags & set(_tags(version)):
        python = ".".join(map(str, version))
        raise ManifestError(f"{wheel}: found {wheel.name}, expected a wheel for Python {python} on x86-64 Linux")
    for requirement in _requirements(wheel, version):
        needs = canonicalize_name(requirement.name)
        there = _version_there(needs, image, brought)
        if there is None and needs not in names:
            raise ManifestError(f"{wheel}: needs {requirement}: found neither in {file} nor among --wheels")
        if there is not None and not requirement.specifier.contains(there, prereleases=True):
            raise ManifestError(f"{wheel}: needs {requirement}: found {needs} {there} ({file}, --wheels)")


def _version_there(name: str, image: dict[str, Requirement], brought: dict[str, Path]) -> str | None:
    """The version of a distribution that the session would have; None where that is not known exactly."""
    if name in brought:
        return str(parse_wheel_filename(brought[name].name)[1])
    exact = [clause.version for clause in image[name].specifier if clause.operator == "=="] if name in image else []
    return exact[0] if exact else None


def _requirements(wheel: Path, version: tuple[int, int]) -> list[Requirement]:
    """What a wheel needs in the image, by its METADATA."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(name).decode())
        requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    except (OSError, zipfile.BadZipFile, StopIteration, UnicodeDecodeError, InvalidRequirement) as error:
        reason = str(error) or "no METADATA"
        raise ManifestError(f"{wheel}: found no readable wheel ({reason}), expected one of pip's") from None
    python = ".".join(map(str, version))
    image = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "os_name": "posix",
        "platform_system": "Linux", "platform_machine": "x86_64", "extra": "",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    return [one for one in requirements if one.marker is None or one.marker.evaluate(image)]


def _tags(version: tuple[int, int]) -> Iterable[Tag]:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in reversed(_GLIBC)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    interpreter = "cp" + "".join(map(str, version))
    yield from cpython_tags(version, [interpreter], platforms)
    yield from compatible_tags(version, interpreter, platforms)


def _name_of(wheel: Path) -> str:
    try:
        return str(parse_wheel_filename(wheel.name)[0])
    except InvalidWheelFilename:
        raise ManifestError(f"{wheel}: found {wheel.name!r}, expected NAME-VERSION-PYTHON-ABI-PLATFORM.whl") from None


def distribution(module: str) -> str:
    """The distribution that brings a module, by its name for an image's list."""
    if module in _DISTRIBUTIONS:
        return _DISTRIBUTIONS[module]
    return canonicalize_name(_installed().get(module, [module])[0])


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    """Distributions here by the names that they are imported under."""
    return importlib.metadata.packages_distributions()
