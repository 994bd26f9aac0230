"""Measures how the localiser numbers hard phantoms beside ordinary ones, as `real_spines.py` does real slices.

    python benchmarks/hard_phantoms.py --weights dist/dataset --patients 40

Each patient (``lumbar_phantom --hard``) gives one sagittal slice near its canal, T2 and T1 by turns, as a series of one
image with the spacing that its header would have. What makes a hard patient hard is told with the wrong ones. The same
seed gives the same images; weights that were trained on it are not measured with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from real_spines import SEALED, Answer, Slice, answer_of, one_slice_study

from lumbar.bundle.manifest import FILE_NAME, verify
from lumbar.bundle.weights import load_networks
from lumbar.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar.models.inference import Networks
from lumbar.stages.localise import localise
from lumbar_phantom import anatomy as an
from lumbar_phantom import hard_images, sequences, volume
from lumbar_phantom.marks import project
from lumbar_phantom.patients import make_case, to_patient
from lumbar_phantom.protocol import plan_study
from lumbar_phantom.streams import stream
from lumbar_phantom.study import Painter, grain_tile, header_scale

SEED = 90631  # of no cohort that weights were trained on
HIGHEST = 3  # index of the highest disc that an answer is compared with


@dataclass(frozen=True)
class Phantom:
    """A slice with its patient's traits in words."""

    one: Slice
    traits: str


def draw(seed: int, index: int, hard: bool) -> Phantom:
    """The slice of one patient; the images of a hard one are hard, too."""
    case = make_case(seed, index, hard=hard)
    patient = case.patient
    body = volume.build(patient, stream(seed, index, "volume"))
    rng = stream(seed, index, "study")
    field = float(rng.choice([0.5, 1.0, 1.5, 1.5, 1.5, 3.0]))
    parameters, grain = sequences.tissue_parameters(rng, patient), grain_tile(rng)
    plans, scale = plan_study(stream(seed, index, "plan"), patient, frozenset()), 1.0
    if hard:
        plans = hard_images.cut_series(stream(seed, index, "cut"), patient, plans)
        scale = header_scale(hard_images.draw_header(stream(seed, index, "scale"), plans))
    kind = (SAGITTAL_T2, SAGITTAL_T1)[index % 2]
    plan = next(plan for plan in plans if plan.description == kind)
    look = stream(seed, index, "look") if hard else None
    painter = Painter(stream(seed, index, "paint"), patient, body, parameters, grain, plan, field, 0.0, look)
    stack = plan.stacks[0]
    nearest = int(np.argmin(np.abs((stack.origins - case.points[0, 2]) @ stack.normal)))
    discs = [project(stack, nearest, to_patient(patient, 2 * j + 1, 0.5, 0.0, 0.0)) for j in range(an.L5, HIGHEST, -1)]
    spacing = float(np.linalg.norm(stack.row_mm)) * scale
    image = painter.slice(stack, stack.origins[nearest])
    words = [f"{name} {value:.0f}" for name, value in patient.traits.items() if name in ("slope", "slip", "scoliosis")]
    words += [f"S1/S2 {patient.discs[an.S1, an.DISC_H]:.0f} mm", f"L5/S1 {patient.discs[an.L5, an.DISC_H]:.0f} mm"]
    words += ["operated"] if patient.trunk[an.BED_FIRST] >= 0 else []
    words += [f"scale {scale:.2f}"] if scale != 1 else []
    name = f"{'hard' if hard else 'ordinary'} {index}"
    return Phantom(Slice(name, index, "", kind, spacing, image, np.array(discs)), ", ".join(words))


def answer(phantom: Phantom, networks: Networks) -> Answer:
    """What the localiser says of a slice."""
    one = phantom.one
    return answer_of(one, localise(one_slice_study(one.image, one.kind, one.spacing_mm), networks))


def summary(answers: Sequence[Answer]) -> str:
    """How many are right, where the others went, and which are flagged."""
    right = [a for a in answers if a.is_right]
    wrong = [a for a in answers if not a.is_right]
    high, low = sum(a.shift > 0 for a in wrong), sum(a.shift < 0 for a in wrong)
    flagged = sum(a.is_flagged for a in wrong), sum(a.is_flagged for a in right)
    return (
        f"{len(answers)} images, right {len(right)} ({len(right) / max(len(answers), 1):.2f}); wrong: {high} too high, "
        f"{low} too low, {len(wrong) - high - low} otherwise; flagged: {flagged[0]} wrong, {flagged[1]} right"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Draw, number and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SEALED, help=f"a folder with weights (default {SEALED})")
    parser.add_argument("--patients", type=int, default=20, help="of each kind (default 20)")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(words)
    if not (args.weights / FILE_NAME).is_file():
        print(f"hard_phantoms: no {args.weights / FILE_NAME}, so nothing is measured")
        return 0
    networks = load_networks(args.weights, verify(args.weights))
    answers: dict[bool, list[Answer]] = {False: [], True: []}
    for index in range(args.patients):
        for hard, own in answers.items():
            phantom = draw(args.seed, index, hard)
            own.append(answer(phantom, networks))
            if not own[-1].is_right:
                steps = " ".join(f"{step:+.1f}" for step in own[-1].steps.values())
                flagged = "flagged" if own[-1].is_flagged else "not flagged"
                print(f"{phantom.one.name} ({phantom.one.kind}): {steps}, {flagged}; {phantom.traits}", flush=True)
    for hard, own in answers.items():
        print(f"{'hard' if hard else 'ordinary'}: {summary(own)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
