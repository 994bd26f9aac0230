"""Every path, command and name in the documents exists, and their worked examples work."""

import re
import sys
import types

import numpy as np
import pytest

import doc_checks
from dicom_writer import encapsulated_file, noisy_slice
from lumbar.errors import DicomError

SYNTAX = "1.2.3.4.5"
ROOT = doc_checks.ROOT
FOREIGN = {"--dir-mode", "--node-rank", "--max-restarts", "--array", "--requeue"}  # of kaggle, torchrun, Slurm
ROOMS = "bundle|chains|stages|workers|output|study|dicom|data|engine|outputs|evaluation|export|run|report|pipeline"
DRAWN = re.compile(rf"(?<![\w./])((?:{ROOMS})(?:\.[A-Za-z_]+)+)")


@pytest.fixture(params=doc_checks.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_every_path_exists(document):
    assert doc_checks.paths(document.read_text(), document.parent) == []


def test_every_target_of_make_exists(document):
    assert doc_checks.targets(document.read_text()) == []


def test_every_command_takes_its_options(document):
    assert doc_checks.calls(document.read_text()) == []


def test_every_option_belongs_to_a_command(document):
    if document.parent.name != "tests":  # pytest's own stand there
        assert doc_checks.options(document.read_text(), FOREIGN) == []


def test_every_dotted_name_exists(document):
    assert doc_checks.names(document.read_text()) == []


def test_every_name_stands_in_the_file_that_is_given_with_it(document):
    assert doc_checks.placed(document.read_text()) == []


def test_every_step_in_the_drawings_of_the_architecture_exists():
    text = "\n".join(re.findall(r"^ {4}.*$", (ROOT / "docs" / "architecture.md").read_text(), re.M))
    drawn = [name for name in DRAWN.findall(text) if not name.endswith((".json", ".html", ".csv", ".py"))]
    assert len(drawn) > 20
    assert [n for n in drawn if not (doc_checks.exists(f"lumbar.{n}") or doc_checks.exists(f"lumbar_train.{n}"))] == []


def test_every_row_of_the_security_page_names_what_is_there():
    rows = re.findall(r"^\| [^|]+ \| (.+) \|$", (ROOT / "docs" / "security.md").read_text(), re.M)[1:]
    n_names = 0
    for part in (part for row in rows for part in row.split(";")):
        spans = re.findall(r"`([^`]+)`", part)
        files = [ROOT / "kernel" / "lumbar" / span for span in spans if span.endswith(".py") and " " not in span]
        assert all(file.is_file() for file in files), part
        for name in re.findall(r"`(\w+)`", part.partition("→")[2]):
            assert any(name in doc_checks.defined(file) for file in files), f"{name} in {part}"
            n_names += 1
    assert n_names > 15


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (doc_checks.paths, "in `kernel/lumbar/no_such_file.py` and"),
        (doc_checks.paths, "see [this](docs/nothing.md)"),
        (doc_checks.targets, "run `make everything-better`"),
        (doc_checks.targets, "    make nonsense    # in a block\n"),
        (doc_checks.calls, "`python -m lumbar forecast --data d`"),
        (doc_checks.calls, "`.venv/bin/python -m lumbar predict --speed 3`"),
        (doc_checks.calls, "    python -m lumbar_train train --data d \\\n      --folding 3\n"),
        (doc_checks.calls, "    python -m lumbar_train baseline --stages x\n"),
        (doc_checks.calls, "`python build_dataset.py --sea`"),
        (doc_checks.calls, "`python -m lumbar_phantom --ou x`"),
        (doc_checks.calls, "`.venv/bin/lumbar predict --speed 3`"),
        (doc_checks.calls, "`.venv/bin/lumbar-phantom --ou x`"),
        (doc_checks.options, "with `--wilder` it"),
        (doc_checks.names, "`lumbar.dicom.read_everything`"),
        (doc_checks.names, "lumbar_train.stages.no_module"),
        (doc_checks.placed, "(`no_such_name` in `kernel/lumbar/metric.py`)"),
    ],
)
def test_a_wrong_name_would_be_seen(check, text):
    assert len(check(text)) == 1


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (doc_checks.calls, "`python -m lumbar predict --data d --time-limit 3h`"),
        (doc_checks.calls, "    python -m lumbar_train baseline --data data --out runs/b --arch small\n"),
        (doc_checks.names, "`lumbar.predict`, lumbar.stages.points.Localisation, lumbar.dicom.read_series"),
    ],
)
def test_a_right_name_passes(check, text):
    assert check(text) == []


@pytest.mark.parametrize("page", ["add-a-stage.md", "add-a-transfer-syntax.md"])
def test_every_line_that_a_diff_shows_or_removes_stands_in_its_file(page):
    for path, lines in doc_checks.diffs((ROOT / "docs" / page).read_text()):
        standing = {line.strip() for line in (ROOT / path).read_text().splitlines()}
        assert [line for line in lines if line not in standing] == [], path


def test_a_line_of_a_diff_that_is_gone_would_be_seen():
    text = "In `kernel/lumbar/errors.py`:\n\n```diff\n class NoSuchError(Exception):\n+    x = 1\n@@\n-y = 2\n```\n"
    assert doc_checks.diffs(text) == [("kernel/lumbar/errors.py", ["class NoSuchError(Exception):", "y = 2"])]


# ---- worked examples ----------------------------------------------------------------------------------------------


def blocks(name):
    """The Python blocks of a document, without the indent of the list that they stand in."""
    text = (ROOT / "docs" / name).read_text()
    matches = re.findall(r"^( *)```python\n(.*?)^ *```", text, re.M | re.S)
    return [re.sub(f"^{indent}", "", body, flags=re.M) for indent, body in matches]


def as_module(monkeypatch, name, source, folder):
    """A block as a module of its own; numba and dataclasses ask for its file."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(source)
    module = types.ModuleType(name)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def test_the_worked_competition_is_that_of_the_examples():
    """tests/publish/test_another_competition.py seals, rehearses and publishes them."""
    sources = [path.read_text() for path in (ROOT / "examples" / "another_competition").rglob("*.py")]
    shown = blocks("another-competition.md")
    assert len(shown) == 5
    assert [block for block in shown if not any(block in source for source in sources)] == []


def test_the_worked_transfer_syntax_decodes_a_file(monkeypatch, tmp_path):
    from lumbar.dicom import pixels, read_slice

    (source,) = blocks("add-a-transfer-syntax.md")
    module = as_module(monkeypatch, "lumbar.dicom.codecs.inverted", source, tmp_path)
    monkeypatch.setitem(pixels.CODECS, SYNTAX, "inverted")
    module.warm_up()
    expected = noisy_slice((12, 10))
    words = (~expected).astype("<u2").tobytes()
    (tmp_path / "whole.dcm").write_bytes(encapsulated_file([words], expected.shape, SYNTAX))
    (tmp_path / "cut.dcm").write_bytes(encapsulated_file([words[:-2]], expected.shape, SYNTAX))
    np.testing.assert_array_equal(read_slice(tmp_path / "whole.dcm").pixels, expected)
    words_above = (~expected ^ 0xF000).astype("<u2").tobytes()  # bits above the twelve that are stored
    (tmp_path / "above.dcm").write_bytes(encapsulated_file([words_above], expected.shape, SYNTAX, stored=12))
    np.testing.assert_array_equal(read_slice(tmp_path / "above.dcm").pixels, expected)
    with pytest.raises(DicomError, match="found 238 bytes, expected 240"):
        read_slice(tmp_path / "cut.dcm")


def test_the_worked_stage_is_built_probed_fitted_and_used(monkeypatch, tmp_path, phantom_cohort):
    import torch

    from lumbar import config, models
    from lumbar.bundle.probes import check_probe, record_probe
    from lumbar.study import read_descriptions, read_study
    from lumbar_train.data.augment import AugmentConfig
    from lumbar_train.engine.sampling import to_device

    configuration, network_code, stage_code, training_code, row = blocks("add-a-stage.md")
    monkeypatch.setattr(config, "SeriesKindConfig", None, raising=False)
    exec(compile(configuration, "series_kind_config", "exec"), config.__dict__)
    kind = config.SeriesKindConfig
    monkeypatch.setitem(config.CONFIGS, "series_kind", kind)
    monkeypatch.setitem(config.LIMITS, kind, {"backbone": config.Object(), "size": config._SIZE})
    module = as_module(monkeypatch, "lumbar.models.series_kind", network_code, tmp_path)
    monkeypatch.setitem(models.MODELS, "series_kind", (module.SeriesKindNet, kind))
    stage = as_module(monkeypatch, "lumbar.stages.series_kind", stage_code, tmp_path)
    training = as_module(monkeypatch, "lumbar_train.stages.series_kind", training_code, tmp_path)

    torch.manual_seed(0)
    small = config.BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8)
    values = config.to_dict(kind(small, size=32))
    network = models.build("series_kind", values).eval()
    assert models.name_of(network.config) == "series_kind"
    check_probe(network, record_probe(network), "series_kind")

    table = read_descriptions(phantom_cohort, "test")
    study_id = int(table["study_id"].iloc[0])
    study = read_study(phantom_cohort, "test", study_id, table)
    cache = types.SimpleNamespace(study=lambda _: study)
    for augment in (None, AugmentConfig()):
        samples = training.SeriesKinds(cache, [study_id], network.config, augment)
        assert samples.studies == {study_id}
        batch = samples.collate([samples.sample(index, np.random.default_rng(0)) for index in range(len(samples))])
        assert batch["images"].shape[1:] == (1, 32, 32)
        loss, figures = training.series_kind_loss(network, to_device(batch, torch.device("cpu")))
        assert loss.isfinite()
        assert figures["weight"] == len(samples)

    fit_the_row(monkeypatch, row, training, network.config, cache, study_id, tmp_path / "run")

    assert stage.kind_problems(study, []) == []
    with torch.no_grad():  # a network that takes everything for T1
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([9.0, -9.0]))
    lines = stage.kind_problems(study, [network])
    assert len(lines) == len(study.series[stage.SAGITTAL_T2])
    assert all("looks like Sagittal T1, described as Sagittal T2/STIR" in line for line in lines)


def fit_the_row(monkeypatch, row, training, config, cache, study_id, run_folder):
    """The example's row of the table of stages is run as the others are."""
    import pandas as pd

    from lumbar_train.data.folds import FULL
    from lumbar_train.engine.distributed import Distributed
    from lumbar_train.outputs.run_folder import RunFolder
    from lumbar_train.overrides import with_overrides
    from lumbar_train.recipes import Fit, Recipe, StageRecipe
    from lumbar_train.stages import registry
    from lumbar_train.stages.fitting import run_on_fold
    from lumbar_train.stages.needs import check_plan, is_done, plan_of
    from lumbar_train.stages.pretrained import Start

    names = vars(registry) | {name: getattr(training, name) for name in ("series_kind_data", "series_kind_loss")}
    exec(row, names)
    stage = names["SERIES_KIND"]
    monkeypatch.setattr(registry, "STAGES", (stage, *registry.STAGES))
    recipe = Recipe("example", {"series_kind": StageRecipe(config, Fit(epochs=3, lr=1e-3, batch=2))})
    recipe = with_overrides(recipe, ["series_kind.epochs=1"])
    folder = RunFolder(run_folder)
    check_plan(folder, plan_of(registry.stages_of(recipe)[:1], [FULL]), registry.stages_of(recipe), [0], command="")
    run = types.SimpleNamespace(
        folds=pd.DataFrame({"study_id": [study_id], "fold": [0]}),
        recipe=recipe,
        cohort=types.SimpleNamespace(fingerprint="f"),
        folder=folder,
        cache=cache,
        seed=0,
        resume=False,
        points_use="beside",
        loop={"progress": False},
        distributed=Distributed(),
        start=Start(),
        initial=None,
    )
    run_on_fold(run, stage, FULL)
    assert is_done(folder, stage, FULL)
    assert len(pd.read_csv(run_folder / "series_kind/full/log.csv")) == 1
