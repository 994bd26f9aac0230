"""A Kaggle Model's metadata: its card, and what the plain ``kaggle models`` commands read from the sealed folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import Manifest, read_manifest
from lumbar.competitions.contract import Competition
from lumbar.competitions.registry import DEFAULT
from lumbar_publish.files import write_text
from lumbar_publish.names import MODEL_FRAMEWORK, MODEL_VARIATION, DatasetId

MODEL_METADATA = "model-metadata.json"
VARIATION_METADATA = "model-instance-metadata.json"
# One that Kaggle lists for models (docs/models_metadata.md of github.com/Kaggle/kaggle-cli; "other" is none there).
# Weights trained on the competition's images also fall under the competition's own rules, which the card says.
LICENCE = "CC BY-NC-SA 4.0"

# The client turns the characters <, > and & of a card into HTML entities (sanitize_markdown), so none is used.
_CARD = """\
# {heading}

{purpose}, for the Kaggle competition {competition}.

**Research use only.** Not a medical device, not for diagnosis or treatment. Probabilities are a model's estimates.

## What is inside

| | |
|---|---|
| recipe | {recipe} |
| trained on | {studies} studies ({description}) |
| out-of-fold score | {scores} |
| networks | {networks} |
| manifest | `{manifest_hash}` |
| code | `{code_hash}` |

Weights are safetensors files (no pickle). `weights_manifest.json` lists each with its hash, and the hash of the code
beside them, which is all that is needed to run them. {forced}

## Limits

Scores are log losses of the competition's metric, lower is better, on data like the training data. Other scanners,
other sequences and other populations were not measured. Weights trained on the competition's images fall under the
competition's rules.
"""
_USAGE = """\
The folder holds `weights_manifest.json`, `weights/` and `code/`. Needs torch, timm, safetensors, pydicom, numba,
pandas and OpenCV, as Kaggle's notebook image has them; no internet.

```python
import sys

import kagglehub

bundle = kagglehub.model_download("{handle}")
sys.path.insert(0, bundle + "/code")
from lumbar import predict

table, record = predict("/kaggle/input/{competition}", bundle, out="submission.csv"{chain})
```

`predict` takes a folder in the competition's layout (`{layout}`). In a notebook
without internet, attach this model as an input: it lies at `${{PATH}}`.
"""
_SPINE = (
    "Lumbar spine MR: localise, crop, classify, aggregate",
    "Grades 25 findings of a lumbar MR study (five levels; spinal canal, foraminal and subarticular stenosis) as\n"
    "normal/mild, moderate or severe",
    "Graded probabilities of lumbar spine degeneration from MR studies",
)


def model_metadata(dataset: DatasetId, manifest: Manifest) -> dict[str, Any]:
    """``model-metadata.json``: a private model and its card, for a manifest's content."""
    owner, slug = dataset.model.split("/")
    return {
        "description": _card(manifest),
        "isPrivate": True,
        "ownerSlug": owner,
        "provenanceSources": "",
        "publishTime": "",
        "slug": slug,
        "subtitle": _about(manifest)[2],
        "title": dataset.title,
    }


def variation_metadata(dataset: DatasetId, manifest: Manifest) -> dict[str, Any]:
    """``model-instance-metadata.json``: the one variation, how to use it, and exactly one licence."""
    owner, slug = dataset.model.split("/")
    is_baseline = {entry.stage for entry in manifest.weights} == {"baseline"}
    chain = ', chain="baseline"' if is_baseline else ""
    competition = manifest.competition
    return {
        "baseModelInstance": "",
        "externalBaseModelUrl": "",
        "fineTunable": True,
        "framework": MODEL_FRAMEWORK,
        "instanceSlug": MODEL_VARIATION,
        "licenseName": LICENCE,
        "modelInstanceType": "Unspecified",
        "modelSlug": slug,
        "overview": f"Recipe {_plain(manifest.recipe)}, manifest {manifest.hash[:12]}",
        "ownerSlug": owner,
        "trainingData": [],
        "usage": _USAGE.format(
            handle=dataset.variation, competition=competition.slug, chain=chain, layout=_layout(competition)
        ),
    }


def write_model_metadata(folder: Path, dataset: DatasetId) -> None:
    """Write both files beside a sealed bundle; they are no part of what is uploaded."""
    manifest = read_manifest(folder)
    for name, data in ((MODEL_METADATA, model_metadata), (VARIATION_METADATA, variation_metadata)):
        text = json.dumps(data(dataset, manifest), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        write_text(folder / name, text)


def remove_model_metadata(folder: Path) -> None:
    """Take both files away: the bundle goes out as a dataset."""
    for name in (MODEL_METADATA, VARIATION_METADATA):
        (folder / name).unlink(missing_ok=True)


def _card(manifest: Manifest) -> str:
    scores = ", ".join(f"{_plain(name)} {value:.4f}" for name, value in _numbers(manifest.oof).items())
    count: dict[str, int] = {}
    for entry in manifest.weights:
        count[entry.stage] = count.get(entry.stage, 0) + 1
    heading, purpose, _ = _about(manifest)
    return _CARD.format(
        heading=heading,
        purpose=purpose,
        competition=manifest.competition.slug,
        recipe=_plain(manifest.recipe),
        studies=manifest.cohort.get("studies", "unknown"),
        description=_plain(str(manifest.cohort.get("description") or "not described")),
        scores=scores or "not measured",
        networks=", ".join(f"{stage} ({n})" for stage, n in count.items()) or "none",
        manifest_hash=manifest.hash,
        code_hash=manifest.code_sha256,
        forced="" if not manifest.forced else "Sealed although: " + "; ".join(map(_plain, map(str, manifest.forced))),
    )


def _about(manifest: Manifest) -> tuple[str, str, str]:
    """Heading, purpose and subtitle of the card; Kaggle takes subtitles of 20 to 80 characters."""
    if manifest.competition_name == DEFAULT:
        return _SPINE
    competition = manifest.competition
    values = ", ".join(map(_plain, competition.titles))
    subtitle = f"Probabilities from imaging studies: {_plain(competition.title)}"
    return _plain(competition.heading), f"Gives probabilities of a study ({values})", subtitle[:80]


def _layout(competition: Competition) -> str:
    """What a competition's test folder holds, in the card's words."""
    parts = [competition.path(competition.images, "test") + "/"]
    parts += [competition.path(competition.table, "test")] if competition.table else []
    return "` and `".join(parts)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _plain(text: str) -> str:
    """Text from a manifest without what Markdown or HTML would take for markup."""
    return " ".join("".join(" " if character in "<>&|`*[]" else character for character in text).split())
