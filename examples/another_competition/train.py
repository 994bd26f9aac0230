"""Fit the one network and export it: ``python examples/another_competition/train.py DATA RUN``."""

import sys
from pathlib import Path

import torch
from lumbar.chains.knee_tears import STAGE, TearNet, middle_slices, read
from lumbar.competitions.knee_tears import COMPETITION, FINDINGS

from lumbar.competitions.tables import read_solution, read_studies
from lumbar_publish.sealing.own_run import export_networks


def main(data: Path, run: Path) -> None:
    """Read the training studies as the kernel will, fit for a moment, write ``RUN/export``."""
    table = read_studies(data, "train", COMPETITION).frame
    labels = read_solution(data / "train_labels.csv", "the labels", COMPETITION).set_index("study_id")
    study_ids = [int(study_id) for study_id in table["study_id"]]
    images = [torch.from_numpy(middle_slices(read(data, "train", k, table, None))) for k in study_ids]
    targets = [torch.tensor(labels.loc[k, list(FINDINGS)].to_numpy(dtype="float32")).expand(len(x), -1)
               for k, x in zip(study_ids, images, strict=True)]  # fmt: skip
    x, y = torch.cat(images), torch.cat(targets)

    torch.manual_seed(0)
    network = TearNet()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(x), y).backward()
        optimiser.step()

    prior = {"study": labels[list(FINDINGS)].mean().tolist()}  # for a study that fails
    export_networks(run, "knee_tears", {STAGE: [network]}, prior, study_ids=study_ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
