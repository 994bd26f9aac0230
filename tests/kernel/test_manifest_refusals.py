"""Every way in which a manifest can lie, each refused in one line before anything of it is used."""

import copy
import json
import os
import random

import pytest

from kernel_bundles import manifest_data, write_bundle
from lumbar.bundle.manifest import manifest_hash, read_manifest, verify, write_manifest
from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS

FILES = {"weights/a.safetensors": b"some weights", "weights/b.safetensors": b"others"}
BACKBONE = {"name": "resnet10t", "channels": [8, 8, 16, 16], "stem_width": 8}


def first(**changes):
    """Change the first entry of weights."""
    return lambda data: data["weights"][0].update(changes)


def probe(**changes):
    return lambda data: data["weights"][0]["probe"].update(changes)


def config(model, stage, values, **changes):
    """Give the first entry another model and a configuration with changes."""
    return first(model=model, stage=stage, config=values | changes)


def heatmap(**changes):
    return config("heatmap", "sagittal_xy", {"points": 11}, **changes)


def axial(**changes):
    return config("axial_classifier", "axial_all", {"backbone": BACKBONE}, **changes)


def backbone(**changes):
    return axial(backbone=BACKBONE | changes)


def aggregator(**changes):
    return config("aggregator", "aggregator", {}, **changes)


FIELDS = {
    "rehearsed a list": (lambda d: d.update(rehearsed=["3.11"]), r"rehearsed: found \['3.11'\], expected an object"),
    "rehearsed on a number": (lambda d: d.update(rehearsed={"torch": 2}), r"rehearsed\.torch: found 2, expected pri"),
    "numbering too short": (lambda d: d.update(numbering=[1.0]), "numbering: found .*, expected"),
    "point probability of two kinds": (
        lambda d: d.update(point_probability={"canal": [0.0, 1.0], "axial": [0.0, 1.0]}),
        "point_probability: foramen missing, expected canal, foramen, axial",
    ),
    "point probability of one number": (
        lambda d: d.update(point_probability={kind: [1.0] for kind in ("canal", "foramen", "axial")}),
        "point_probability.canal: found .*, expected",
    ),
    "point probability no object": (
        lambda d: d.update(point_probability=[1.0]),
        "point_probability: found .*, expected",
    ),
    "grade calibration of two groups": (
        lambda d: d.update(grade_calibration={"spinal": [1.0, 0.0], "foraminal": [1.0, 0.0]}),
        "grade_calibration: subarticular missing, expected spinal, foraminal, subarticular",
    ),
    "grade calibration of another group": (
        lambda d: d.update(grade_calibration={"canal": [1.0, 0.0]}),
        "grade_calibration: found 'canal', expected spinal, foraminal, subarticular",
    ),
    "grade calibration without temperature": (
        lambda d: d.update(grade_calibration={key: [0.0, 0.1] for key in ("spinal", "foraminal", "subarticular")}),
        "grade_calibration.spinal: temperature: found 0.0, expected",
    ),
    "grade calibration beyond the prior": (
        lambda d: d.update(grade_calibration={key: [1.0, 1.1] for key in ("spinal", "foraminal", "subarticular")}),
        "grade_calibration.spinal: share of the prior: found 1.1, expected",
    ),
    "grade calibration of one number": (
        lambda d: d.update(grade_calibration={key: [1.0] for key in ("spinal", "foraminal", "subarticular")}),
        "grade_calibration.spinal: found .*, expected 2 values",
    ),
    "numbering too long": (lambda d: d.update(numbering=[1.0] * 8), "numbering: found .*, expected"),
    "numbering no numbers": (lambda d: d.update(numbering=["1"] * 5), "numbering: found .*, expected"),
    "schema 1.0": (lambda d: d.update(schema=1.0), "schema: found float, expected int"),
    "schema true": (lambda d: d.update(schema=True), "found schema True, expected 1"),
    "schema list": (lambda d: d.update(schema=[1]), r"found schema \[1\], expected 1"),
    "code hash no hex": (lambda d: d.update(code_sha256="g" * 64), "code_sha256: found 'ggg"),
    "code hash short": (lambda d: d.update(code_sha256="ab"), "expected 64 hexadecimal digits or nothing"),
    "dataset id a number": (lambda d: d["dataset"].update(id=3), r"dataset\.id: found 3, expected printable text"),
    "dataset version a list": (lambda d: d["dataset"].update(version=[]), r"dataset\.version: found \[\], expected"),
    "studies negative": (lambda d: d["cohort"].update(studies=-1), r"cohort\.studies: found -1, expected a whole"),
    "control characters": (lambda d: d.update(recipe="demo\x1b[2J"), r"found 'demo\\x1b\[2J', expected printable"),
    "bidirectional marks": (lambda d: d.update(recipe="demo\u202e"), r"found 'demo\\u202e', expected printable"),
    "lone surrogate": (lambda d: d.update(recipe="demo\ud800"), r"found 'demo\\ud800', expected printable"),
    "unprintable key": (lambda d: d["oof"].update({"a\nb": 1}), r"found 'a\\nb', expected printable"),
    "long recipe": (lambda d: d.update(recipe="x" * 5000), "recipe: found 'xxx.*xxx', expected printable text"),
    "forced numbers": (lambda d: d.update(forced=[1]), r"forced: found \[1\], expected 0 to 1000 values"),
    "too many weights": (lambda d: d.update(weights=d["weights"][:1] * 1001), "weights: found .*, expected 0 to 1000"),
    "prior above 1": (lambda d: d["prior"].update({COLUMNS[0]: [1.5, -0.5, 0]}), "expected 3 probabilities"),
    "prior true": (lambda d: d["prior"].update({COLUMNS[0]: [True, 0, 0]}), "expected 3 probabilities"),
    "prior text": (lambda d: d["prior"].update({COLUMNS[0]: "1"}), "found '1', expected 3 probabilities"),
    "prior column": (lambda d: d["prior"].update(neck=[1, 0, 0]), "found column 'neck', expected the 25 label"),
    "sha256 no hex": (first(sha256="z" * 64), r"weights\[0\]\.sha256: found 'zzz.*, expected 64 hexadecimal"),
    "sha256 upper case": (first(sha256="AB" * 32), "expected 64 hexadecimal digits"),
    "bytes 0": (first(bytes=0), r"weights\[0\]\.bytes: found 0, expected a whole number from 1"),
    "bytes negative": (first(bytes=-1), r"weights\[0\]\.bytes: found -1, expected a whole number from 1"),
    "bytes vast": (first(bytes=10**18), r"weights\[0\]\.bytes: found 10+, expected"),
    "bytes float": (first(bytes=12.0), r"weights\[0\]\.bytes: found float, expected int"),
    "fold float": (first(fold=0.5), r"weights\[0\]\.fold: found float, expected int"),
    "fold vast": (first(fold=10**9), r"weights\[0\]\.fold: found 1000000000, expected a whole number from -1000"),
    "stage with a slash": (first(stage="a/b"), r"weights\[0\]\.stage: found 'a/b', expected a name of letters"),
    "model of another stage": (first(stage="aggregator"), "found 'heatmap' for stage 'aggregator', expected aggreg"),
    "probe seed negative": (probe(seed=-1), r"probe\.seed: found -1, expected a whole number from 0"),
    "probe seed vast": (probe(seed=2**40), r"probe\.seed: found 1099511627776, expected a whole number"),
    "probe seed float": (probe(seed=0.0), r"probe\.seed: found 0\.0, expected a whole number"),
    "probe tolerance": (probe(tolerance=1e9), r"probe\.tolerance: found 1000000000\.0, expected a number from 0 to"),
    "probe tolerance negative": (probe(tolerance=-1), r"probe\.tolerance: found -1, expected a number from 0"),
    "probe tolerance true": (probe(tolerance=True), r"probe\.tolerance: found True, expected a number"),
    "probe empty": (probe(expected=[]), r"probe\.expected: found \[\], expected 1 to 64 values"),
    "probe text": (probe(expected=["0"]), r"probe\.expected: found \['0'\], expected 1 to 64 values"),
    "probe inputs": (probe(inputs=[1]), r"probe\.inputs: found \[1\], expected an object"),
}  # fmt: skip
NAMES = {
    "long": "weights/" + "a" * 5000 + ".safetensors",
    "long part": "a" * 150 + ".safetensors",
    "second way to write it": "./weights/b.safetensors",
    "double slash": "weights//b.safetensors",
    "dot inside": "weights/./b.safetensors",
    "parent": "weights/../weights/b.safetensors",
    "backslash": "weights\\b.safetensors",
    "drive": "c:b.safetensors",
    "stream": "b.safetensors:x.safetensors",
    "device": "weights/NUL.safetensors",
    "device as a folder": "com1/b.safetensors",
    "trailing dot": "weights./b.safetensors",
    "space": "weights/b .safetensors",
    "hidden": "weights/.b.safetensors",
    "newline": "weights/b\n.safetensors",
    "null": "weights/b\0.safetensors",
    "letters that look alike": "weights/\u0430.safetensors",
    "empty": "",
    "suffix alone": ".safetensors",
    "pickle": "weights/b.bin",
    "folder": "weights/b.safetensors/",
    "deep": "a/" * 20 + "b.safetensors",
}
CONFIGS = {
    "size 0": (heatmap(size=0), r"weights\[0\]\.config: HeatmapConfig\.size: found 0, expected a whole number from 8"),
    "size -1": (heatmap(size=-1), r"HeatmapConfig\.size: found -1, expected"),
    "size vast": (heatmap(size=10**9), r"HeatmapConfig\.size: found 1000000000, expected"),
    "size a million": (axial(size=10**6), r"AxialClassifierConfig\.size: found 1000000, expected"),
    "size text": (heatmap(size="256"), r"HeatmapConfig\.size: found '256', expected"),
    "size float": (heatmap(size=256.0), r"HeatmapConfig\.size: found 256\.0, expected"),
    "size null": (heatmap(size=None), r"HeatmapConfig\.size: found None, expected"),
    "size true": (heatmap(size=True), r"HeatmapConfig\.size: found True, expected"),
    "points missing": (first(config={}), "HeatmapConfig: points missing, expected a whole number"),
    "key unknown": (heatmap(colour=1), r"HeatmapConfig: unknown keys \['colour'\], expected a subset"),
    "widths empty": (heatmap(widths=[]), r"HeatmapConfig\.widths: found \[\], expected 2 to 8 values"),
    "widths odd": (heatmap(widths=[8, 9]), r"widths: found \[8, 9\], expected .* a multiple of 8"),
    "widths vast": (heatmap(widths=[8, 8 * 10**8]), r"HeatmapConfig\.widths: found"),
    "widths a number": (heatmap(widths=8), r"HeatmapConfig\.widths: found 8, expected"),
    "context vast": (heatmap(context=10**7), r"HeatmapConfig\.context: found"),
    "pixels of no size": (heatmap(mm_per_px=0), r"HeatmapConfig\.mm_per_px: found 0, expected a number above 0"),
    "dropout": (axial(dropout=5), r"AxialClassifierConfig\.dropout: found 5, expected a number from 0 to 1"),
    "hidden": (axial(hidden=10**9), r"AxialClassifierConfig\.hidden: found 1000000000, expected"),
    "window": (axial(window=-3), r"AxialClassifierConfig\.window: found -3, expected"),
    "embedding": (axial(level_embedding=10**9), r"AxialClassifierConfig\.level_embedding: found"),
    "conditions": (axial(conditions=[3, 5]), r"AxialClassifierConfig\.conditions: found \[3, 5\], expected"),
    "conditions twice": (axial(conditions=[3, 3]), r"conditions: found \[3, 3\], expected 1 to 5 different values"),
    "box": (axial(box_mm=[90.0, 36.0]), r"box_mm: found \(90\.0, 36\.0\), expected the smaller limit first"),
    "flag": (axial(share_sides=1), r"AxialClassifierConfig\.share_sides: found 1, expected true or false"),
    "models": (aggregator(models=["a"] * 2), r"AggregatorConfig\.models: found \['a', 'a'\], expected"),
    "models vast": (aggregator(models=[f"m{i}" for i in range(10**4)]), r"AggregatorConfig\.models: found"),
    "backbone missing": (config("axial_classifier", "axial_all", {}), "backbone missing, expected an object"),
    "backbone text": (axial(backbone="resnet10t"), r"backbone: found 'resnet10t', expected an object"),
    "hub": (backbone(name="hf-hub:timm/resnet10t"), r"BackboneConfig\.name: found 'hf-hub:.*, expected the name"),
    "hub, old form": (backbone(name="hf_hub:x/y"), r"BackboneConfig\.name: found 'hf_hub:x/y', expected the name"),
    "folder": (backbone(name="local-dir:/tmp/x"), r"BackboneConfig\.name: found 'local-dir:/tmp/x', expected the name"),
    "path": (backbone(name="../resnet10t"), r"BackboneConfig\.name: found '\.\./resnet10t', expected the name"),
    "address": (backbone(name="https://x.org/y"), r"BackboneConfig\.name: found 'https://x\.org/y', expected the name"),
    "no name": (backbone(name=""), r"BackboneConfig\.name: found '', expected the name of a timm network"),
    "heatmap's hub": (heatmap(backbone="hf-hub:x/y"), r"HeatmapConfig\.backbone: found 'hf-hub:x/y', expected the"),
    "pretrained": (backbone(pretrained=True), r"BackboneConfig: unknown keys \['pretrained'\]"),
    "checkpoint": (backbone(checkpoint_path="/x"), r"BackboneConfig: unknown keys \['checkpoint_path'\]"),
    "norm": (backbone(norm="layer"), r"BackboneConfig\.norm: found 'layer', expected 'batch' or 'group'"),
    "channels": (backbone(channels=[10**9] * 4), r"BackboneConfig\.channels: found"),
    "stem": (backbone(stem_width=-1), r"BackboneConfig\.stem_width: found -1, expected"),
    "drop path": (backbone(drop_path=2.0), r"BackboneConfig\.drop_path: found 2\.0, expected"),
}  # fmt: skip
TABLE = {
    **{f"field: {name}": case for name, case in FIELDS.items()},
    **{f"config: {name}": case for name, case in CONFIGS.items()},
    **{
        f"file: {name}": (first(file=file), r"weights\[0\]\.file|expected printable text")
        for name, file in NAMES.items()
    },
}


def refused(path, message):
    """The one line of the refusal."""
    with pytest.raises(ManifestError, match=message) as caught:
        verify(path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1200
    assert "weights_manifest.json: " in text


@pytest.mark.parametrize("name", TABLE)
def test_a_value_that_cannot_be_is_refused_when_read_and_when_written(tmp_path, name):
    change, message = TABLE[name]
    data = manifest_data(FILES)
    change(data)
    path = write_bundle(tmp_path, FILES) / "weights_manifest.json"
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=message):
        write_manifest(path, data)
    assert path.read_bytes() == before
    path.write_text(json.dumps(data))
    refused(tmp_path, message)


TEXTS = {
    "nested deep": ("[" * 200_000 + "]" * 200_000, "nested (too|more than)"),
    "objects nested deep": ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested (too|more than)"),
    "nested within the parser's reach": ('{"schema": 1, "oof": ' + "[" * 60 + "]" * 60 + "}", "nested more than 32"),
    "infinity": ('{"tolerance": Infinity}', r"not JSON \(found Infinity, which is no JSON number\)"),
    "NaN": ('{"tolerance": NaN}', r"not JSON \(found NaN"),
    "a float beyond floats": ('{"tolerance": 1e999}', r"not JSON \(found the number '1e999', too large"),
    "an int of 5000 digits": ('{"bytes": ' + "9" * 5000 + "}", r"not JSON \(found a whole number of 5000 digits"),
    "an int of 400 digits": ('{"bytes": ' + "9" * 400 + "}", r"not JSON \(found a whole number of 400 digits"),
    "a key twice": ('{"schema": 1, "schema": 1}', r"not JSON \(found key 'schema' twice"),
    "a key twice deep inside": ('{"a": [{"b": 1, "b": 2}]}', r"not JSON \(found key 'b' twice"),
    "not UTF-8": (b'{"recipe": "\xff\xfe"}', r"not JSON \('utf-8' codec"),
    "UTF-16": ('{"schema": 1}'.encode("utf-16"), r"not JSON \("),
    "null characters": (b"\0" * 100, r"not JSON \("),
    "text": ('"manifest"', "found str, expected an object"),
    "null": ("null", "found NoneType, expected an object"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_manifest_is_refused(tmp_path, name):
    text, message = TEXTS[name]
    (tmp_path / "weights_manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, message)


def test_two_entries_for_one_file_are_refused(tmp_path):
    for other in ("other/a.safetensors", "weights/A.safetensors", "a.safetensors"):
        data = manifest_data({"weights/a.safetensors": b"1", other: b"1"})
        with pytest.raises(ManifestError, match="is listed twice, expected once"):
            write_manifest(tmp_path / "weights_manifest.json", data)


def test_a_vast_manifest_a_folder_and_a_fifo_are_refused_and_nothing_waits(tmp_path):
    path = tmp_path / "weights_manifest.json"
    with path.open("wb") as file:
        file.truncate(5 << 30)
    for read in (verify, read_manifest, manifest_hash):
        with pytest.raises(ManifestError, match="found more than 4194304 bytes"):
            read(tmp_path)
    path.unlink()
    os.mkfifo(path)
    for read in (verify, read_manifest, manifest_hash):
        with pytest.raises(ManifestError, match="found a FIFO, expected the weights' manifest"):
            read(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ManifestError, match="found a folder, expected the weights' manifest"):
        verify(tmp_path)


@pytest.mark.parametrize("folder", ["x" * 5000, "a\0b", "/dev/null/x", "x" * 5000 + ".json"])
def test_a_bundle_whose_name_no_file_can_have_is_refused(folder):
    for read in (verify, read_manifest, manifest_hash):
        with pytest.raises(ManifestError, match="cannot be read"):
            read(folder)


def test_weights_that_are_no_regular_file_of_the_bundle_are_refused(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", FILES)
    path = bundle / "weights" / "a.safetensors"
    path.rename(tmp_path / "a.safetensors")
    path.symlink_to(tmp_path / "a.safetensors")
    with pytest.raises(ManifestError, match=r"a\.safetensors: found a link that leads out of the bundle, expected"):
        verify(bundle)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ManifestError, match=r"a\.safetensors: "):
        verify(bundle)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ManifestError, match=r"a\.safetensors: found a FIFO"):
        verify(bundle)
    path.unlink()
    path.mkdir()
    with pytest.raises(ManifestError, match=r"a\.safetensors: found a folder"):
        verify(bundle)


def test_data_nested_without_end_are_not_written(tmp_path):
    endless = []
    endless.append(endless)
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (endless, deep, 10**5000):
        # From Python 3.13 on the encoder follows the deep one to its end, and the check of the depth refuses it.
        with pytest.raises(ManifestError, match=r"cannot be written|nested more than 32 levels deep"):
            write_manifest(tmp_path / "weights_manifest.json", manifest_data(FILES, oof={"total": value}))
    assert list(tmp_path.iterdir()) == []


ODD = [
    None, True, 0, -1, 1, 1.5, 10**9, 2**63, -(10**18), 1e308, "", "a", "\x1b[0m", "hf-hub:a/b", "../x", "x" * 6000,
    [], [[]], {}, {"a": 1}, [None], [1] * 9, ["resnet10t"], {"name": "resnet10t"}, "\ud800", "aggregator", "heatmap",
]  # fmt: skip


def places(value, trail=()):
    """Every place of a JSON value, as keys from the top."""
    yield trail
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*trail, key))


def mutate(rng, data, trails):
    """One to four random changes: a value replaced, removed, doubled or renamed."""
    for _ in range(rng.randint(1, 4)):
        *above, key = rng.choice(trails)
        parent, kind = data, rng.randrange(5)
        try:
            for step in above:
                parent = parent[step]
            if kind == 0:
                del parent[key]
            elif kind == 1 and isinstance(parent, list):
                parent.insert(key, parent[key])
            elif kind == 2 and isinstance(parent, dict):
                parent[rng.choice(["x", "\n", "name", "size", "file"])] = parent.pop(key)
            else:
                parent[key] = rng.choice(ODD)
        except (LookupError, TypeError):
            continue  # an earlier change took the place away
    return data


def is_refused(folder):
    """Whether a manifest is refused, in one printable line; anything but a ManifestError escapes and fails the test."""
    try:
        read_manifest(folder)
    except ManifestError as error:
        line = str(error)
    else:
        return False
    assert line.isprintable()
    return True


def test_thousands_of_mutated_manifests_are_read_or_refused_in_one_line(tmp_path):
    rng = random.Random(20240)
    data = manifest_data(FILES)
    for change in (axial(), aggregator(), backbone(drop_path=0.1), heatmap(widths=[8, 16])):
        change(data)
        name = f"weights/{len(data['weights'])}.safetensors"
        data["weights"].append(copy.deepcopy(data["weights"][0]) | {"file": name})
    write_bundle(tmp_path, FILES)
    path = tmp_path / "weights_manifest.json"
    text = json.dumps(data)
    trails = [trail for trail in places(data) if trail]
    n_refused = 0
    for _ in range(1500):
        path.write_text(json.dumps(mutate(rng, json.loads(text), trails)))
        n_refused += is_refused(tmp_path)
    for _ in range(600):  # bytes of the text itself
        broken = bytearray(text.encode())
        for _ in range(rng.randint(1, 6)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])]))
        n_refused += is_refused(tmp_path)
    assert n_refused > 1500
