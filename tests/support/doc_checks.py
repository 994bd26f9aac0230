"""What a document names and the repository does not have: paths, targets of make, commands, names of Python."""

import ast
import functools
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
HOMES = {"lumbar": ROOT / "kernel", **{f"lumbar_{name}": ROOT / "src" for name in ("phantom", "train", "publish")}}
# Made by the worked examples of docs/add-a-*.md and docs/another-competition.md
EXAMPLES = {
    "kernel/lumbar/dicom/codecs/inverted.py",
    "tests/dicom/test_inverted.py",
    "tests/reference/inverted_twin.py",
    "kernel/lumbar/models/series_kind.py",
    "kernel/lumbar/stages/series_kind.py",
    "src/lumbar_train/stages/series_kind.py",
    "kernel/lumbar/competitions/knee_tears.py",
    "kernel/lumbar/chains/knee_tears.py",
}
SOURCES = {  # of a command's options
    "lumbar": ["kernel/lumbar/__main__.py"],
    "lumbar_phantom": ["src/lumbar_phantom/__main__.py"],
    "lumbar_train": [
        "src/lumbar_train/__main__.py",
        "src/lumbar_train/baseline/command.py",
        "src/lumbar_train/ensemble/command.py",
    ],
    "lumbar_publish": [
        f"src/lumbar_publish/{name}.py" for name in ("rehearsal/dry_run", "training/command", "training/options")
    ],
    "build_dataset.py": ["src/lumbar_publish/cli.py"],
}
_PATH = re.compile(r"(?<![\w./-])(?:kernel|src|docs|tests|examples|benchmarks|tools)/[\w./-]*\w/?(?:\.\w+)?")
_LINK = re.compile(r"\]\(([^)#:\s]+)\)")
_CODE = re.compile(r"^(?: {4}|\t).*$|`[^`]+`", re.M)
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
_MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
_COMMAND = re.compile(
    r"(?:-m (lumbar(?:_\w+)?)(?![\w.])|bin/(lumbar(?:-\w+)?)(?![\w.-])|python (build_dataset\.py))([^\n`#]*)"
)
_NAME = re.compile(r"(?<![\w./-])(lumbar(?:_phantom|_train|_publish)?(?:\.[A-Za-z_]\w*)+)")
_PLACED = re.compile(r"`(\w+)`(?:,\s+`(\w+)`)*\s+(?:in|of)\s+`((?:kernel|src|tests)/[\w/]+\.py)`")
_OPTION = re.compile(r"`(--?[a-z][a-z-]*)[^`]*`")


def paths(text, folder=ROOT):
    """Paths that are not there."""
    missing = [name for name in _PATH.findall(text) if name not in EXAMPLES and not (ROOT / name).exists()]
    missing += [name for name in _LINK.findall(text) if not (folder / name).exists()]
    return list(dict.fromkeys(missing))


def diffs(text):
    """(path, lines) of each diff: the file named last before it, and the lines that it shows as there or removes."""
    shown = []
    for match in _FENCE.finditer(text):
        if match[1] == "diff":
            path = _PATH.findall(text[: match.start()])[-1]
            lines = [line[1:].strip() for line in match[2].splitlines() if line[:1] in (" ", "-")]
            shown.append((path, [line for line in lines if line]))
    return shown


def code(text):
    """Spans, indented blocks and fenced blocks; a command that goes on after a backslash is one line."""
    fenced = "\n".join(body for _, body in _FENCE.findall(text))
    outside = _FENCE.sub("", text)
    return (fenced + "\n" + "\n".join(_CODE.findall(outside))).replace("\\\n", " ")


def targets(text):
    """Targets of make that the Makefile does not have."""
    known = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    return [name for name in _MAKE.findall(code(text)) if name not in known]


@functools.cache
def commands(name):
    """Command → options, from the calls of ``add_parser`` and ``add_argument``; "" where there is no command."""
    options_of = {"": set()}
    for source in SOURCES[name]:
        for function in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(function, ast.FunctionDef):
                _collect(function, options_of)
    return options_of


def _collect(function, options_of):
    parsers = {}
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if getattr(node.value.func, "attr", "") == "add_parser":
                parsers[getattr(target, "id", "")] = node.value.args[0].value
                options_of.setdefault(node.value.args[0].value, set())
    only = next(iter(parsers.values())) if len(parsers) == 1 else ""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            owner = getattr(getattr(node.func, "value", None), "id", "")
            words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            flags = {word for word in words if isinstance(word, str) and word.startswith("-")}
            if flags:  # `add = parser.add_argument` hides whose it is: the only one's there
                options_of[parsers.get(owner, only)] |= flags


def calls(text):
    """Commands of ours with a word or option that they do not take."""
    wrong = []
    for module, installed, script, rest in _COMMAND.findall(code(text)):
        name = module or installed.replace("-", "_") or script
        if name not in SOURCES:
            wrong.append(name)
            continue
        known = commands(name)
        words = shlex.split(re.sub(r"<[^>]*>", "X", rest))
        has_commands = len(known) > 1
        command = words[0] if has_commands and words and not words[0].startswith("-") else ""
        if command not in known:
            wrong.append(f"{name} {command}")
            continue
        options = known[command] | {"--help", "--version"} | {"--no-pretrained"}
        wrong += [f"{name} {command} {word}" for word in words if word.startswith("-") and word not in options]
    return wrong


def options(text, foreign=()):
    """Options in spans of their own that no command of ours has."""
    known = {option for name in SOURCES for flags in commands(name).values() for option in flags}
    known |= {"--help", "--no-pretrained", *foreign}
    return [option for option in _OPTION.findall(text) if option not in known]


def names(text):
    """Dotted names of ours that lead nowhere."""
    made = {name.partition("/")[2].removesuffix(".py").replace("/", ".") for name in EXAMPLES}
    return [name for name in dict.fromkeys(_NAME.findall(text)) if name not in made and not exists(name)]


def placed(text):
    """Names said to stand in a file (`name` in `path`) that do not."""
    wrong = []
    for *names_said, path in _PLACED.findall(text):
        file = ROOT / path
        standing = defined(file) if file.is_file() else set()
        wrong += [f"{name} in {path}" for name in names_said if name and name not in standing]
    return wrong


def exists(name):
    """Whether a dotted name is a module, or is defined or imported in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        file = module_file(parts[:count])
        if file is not None:
            rest = parts[count:]
            return not rest or rest[0] in defined(file)
    return False


def module_file(parts):
    """The file of a module, or None."""
    base = HOMES.get(parts[0], ROOT).joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache
def defined(file):
    """Names at the top of a module, those that it imports on demand included, and those of its classes' members."""
    names_there = set()
    tree = ast.parse(file.read_text())
    for node in [
        *tree.body,
        *(inner for outer in tree.body if isinstance(outer, ast.ClassDef) for inner in outer.body),
    ]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names_there.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names_there |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names_there |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
            if isinstance(node.value, ast.Dict) and "_HOMES" in names_there:
                names_there |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return names_there
