"""A team mate's own training: ``python examples/external_member/fit.py RUN DATA FOLDER [EPOCHS]``.

FOLDER is a copy of ``examples/external_member/anna``; RUN is a run on the cohort in DATA, whose folds and points are
used. FOLDER gets ``oof.parquet``, each study by a network that was fitted without its fold, and ``net.safetensors``,
the network of all studies.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from lumbar.labels import CONDITIONS
from lumbar.stages.classifiers import crop_config
from lumbar.stages.external import Case, crops_of_levels
from lumbar.study import Study, read_study
from lumbar_train.data.folds import read_own_folds
from lumbar_train.data.tables import read_cohort
from lumbar_train.outputs.store import logits_frame, read_localisations, write_frame


def main(run: str, data: str, folder: str, epochs: str = "30") -> None:
    """Fit a network for each fold and one for all, and leave what an ensemble asks for."""
    place = Path(folder).resolve()
    sys.path.insert(0, str(place.parent))
    member = importlib.import_module(f"{place.name}.member")
    about = json.loads((place / "member.json").read_text())
    conditions = [CONDITIONS.index(name) for name in about["conditions"]]
    cohort = read_cohort(data)
    table = read_own_folds(Path(run) / "folds.csv")
    fold_of = dict(zip(table["study_id"].tolist(), table["fold"].tolist(), strict=True))
    cases = {study: case_of(study, run, cohort, about) for study in sorted(fold_of)}
    labels = {study: cohort.labels[cohort.rows([study])][0].reshape(5, 5)[conditions] for study in cases}

    logits, masks = {}, {}
    for fold in sorted(set(fold_of.values())):
        net = fitted(member, [(cases[s], labels[s]) for s in cases if fold_of[s] != fold], int(epochs))
        for study in (study for study in cases if fold_of[study] == fold):
            logits[study], masks[study] = np.zeros((5, 5, 3), np.float32), np.zeros((5, 5), bool)
            with torch.inference_mode():
                values, shown = member.predict(net, cases[study])
            logits[study][conditions], masks[study][conditions] = values.numpy(), shown.numpy()
    write_frame(place / "oof.parquet", logits_frame(logits, masks, fold_of))
    net = fitted(member, [(cases[study], labels[study]) for study in cases], int(epochs))
    save_file(net.state_dict(), place / "net.safetensors")
    print(f"{place}: out-of-fold logits of {len(cases)} studies, and a network of all")


def case_of(study_id: int, run: str, cohort: Any, about: dict[str, Any]) -> Case:
    """What the kit will show of a study, with points of networks that have not seen it."""
    study = read_study(cohort.root, "train", study_id, cohort.series)
    localisation = read_localisations(Path(run) / "localise", [study_id])[study_id]
    crops = crops_of_levels(study, localisation, crop_config(about["view"], about["crop"]))
    slim = Study(study_id, {})  # this member looks at crops alone: whole studies would fill the memory
    return Case(slim, localisation, crops, device="cpu", augment=True, all_folds=True)


def fitted(member: Any, samples: list[tuple[Case, np.ndarray]], epochs: int) -> torch.nn.Module:
    """A network fitted on some studies."""
    torch.manual_seed(0)
    net = member.Net()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    weights = torch.tensor([1.0, 2.0, 4.0])  # the competition's
    for _ in range(epochs):
        for case, grades in samples:
            logits, shown = member.predict(net, case)
            target = torch.from_numpy(np.where(shown.numpy(), grades, -1)).long()
            if (target >= 0).any():
                loss = functional.cross_entropy(logits.reshape(-1, 3), target.reshape(-1), weights, ignore_index=-1)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return net.eval()


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) not in (4, 5) else main(*sys.argv[1:])
