"""Makes one study: patient, volume, series, files, and its rows of every table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from lumbar import labels
from lumbar.io.files import atomic_file
from lumbar_phantom import anatomy as an
from lumbar_phantom import artefacts, axial_images, dicom_files, families, hard_images, painting, sequences, volume
from lumbar_phantom import pitfalls as pf
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.marks import mark
from lumbar_phantom.masks import mask_slice
from lumbar_phantom.patients import Case, make_case
from lumbar_phantom.protocol import SeriesPlan, StackPlan, plan_study
from lumbar_phantom.streams import stream
from lumbar_phantom.tables import StudyTables

TEST_OFFSET = 1_000_000  # added to the index in the test split, so that the same seed gives other patients


@dataclass(frozen=True, slots=True)
class Request:
    """Which study to make, in a form that can be sent to a worker process.

    Attributes:
        root: folder of the cohort.
        split: train or test.
        seed: of the cohort.
        index: of the study in its split, from 0.
        pitfalls: as `pitfalls.parse` returns them.
        masks: also write tissue masks of the sagittal series.
        randomised_share: share of series, 0..1, whose contrast is redrawn far beyond the realistic.
        syntax: transfer syntax, a name in `dicom_files.SYNTAXES`.
        hard_share: share of patients, 0..1, with the anatomy of `junction` and the images of `hard_images`.
        family: one of `families.NAMES` whose appearance all series have; empty for none.
    """

    root: str
    split: str
    seed: int
    index: int
    pitfalls: tuple[str, ...] = ("real",)
    masks: bool = False
    randomised_share: float = 0.3
    syntax: str = "rle"
    hard_share: float = 0.0
    family: str = ""


def study_number(seed: int, index: int) -> int:
    """A study id that no other index of the same seed has."""
    return (index * 2654435761 + (seed * 97 + 13) * 40503) % (1 << 31) + 100_000


def is_hard(request: Request) -> bool:
    """Whether the patient of a request is a hard one."""
    index = request.index + (TEST_OFFSET if request.split == "test" else 0)
    return bool(stream(request.seed, index, "hard").random() < request.hard_share)


def study_case(request: Request) -> tuple[Case, frozenset[str]]:
    """The patient and the pitfalls of a request, without any image."""
    index = request.index + (TEST_OFFSET if request.split == "test" else 0)
    pitfalls = pf.draw(request.seed, request.index, request.pitfalls)
    case = make_case(
        request.seed,
        index,
        transitional="transitional" in pitfalls,
        missing="missing_labels" in pitfalls,
        hard=is_hard(request),
    )
    return case, pitfalls


def write_study(request: Request) -> StudyTables:
    """Draw one study and write its files; returns its rows of the tables."""
    index = request.index + (TEST_OFFSET if request.split == "test" else 0)
    case, pitfalls = study_case(request)
    study_id = study_number(request.seed, index)
    tables = StudyTables(study_id, case.labels, case.narrowing, case.grades)
    body = volume.build(case.patient, stream(request.seed, index, "volume"))
    rng = stream(request.seed, index, "study")
    plans = plan_study(stream(request.seed, index, "plan"), case.patient, pitfalls)
    hard_header: dict[str, object] = {}
    if hard := is_hard(request):
        plans = hard_images.cut_series(stream(request.seed, index, "cut"), case.patient, plans)
        plans = axial_images.replan(stream(request.seed, index, "axial"), plans)
        hard_header = hard_images.draw_header(stream(request.seed, index, "scale"), plans)
    plans = families.plans_of(stream(request.seed, index, "family"), request.family, plans)
    field_strength = float(rng.choice([0.3, 0.5, 1.0, 1.5, 1.5, 1.5, 1.5, 3.0, 3.0]))
    parameters = sequences.tissue_parameters(rng, case.patient)
    grain = grain_tile(rng)
    ids: list[int] = []
    for number, plan in enumerate(plans):
        series_id = int(stream(request.seed, index, "series", number).integers(1 << 31)) + 1000 + number
        ids.append(series_id)
        folder = Path(request.root) / f"{request.split}_images" / str(study_id) / str(series_id)
        folder.mkdir(parents=True, exist_ok=True)
        painting_rng = stream(request.seed, index, "paint", number)
        randomised = draw_randomisation(painting_rng, request.randomised_share)
        look = stream(request.seed, index, "look", number) if hard else None
        family = families.Family(request.family, stream(request.seed, index, "family", number))
        painter = Painter(
            painting_rng, case.patient, body, parameters, grain, plan, field_strength, randomised, look, family
        )
        options = hard_images.header_of(plan, hard_header) | header_options(
            stream(request.seed, index, "header", number), pitfalls
        )
        options.setdefault("syntax", request.syntax)
        _write_series(painter, plan, folder, study_id, series_id, pitfalls, options)
        tables.descriptions.append((study_id, series_id, plan.description))
        tables.contrasts.append((study_id, series_id, plan.kind.upper(), round(randomised, 3)))
        if request.masks and plan.description != labels.AXIAL_T2:
            _write_masks(request, study_id, series_id, plan, body)
    mark(stream(request.seed, index, "marks"), case, plans, ids, pitfalls, tables)
    scale = header_scale(hard_header)
    if scale != 1.0:  # the truth in the millimetres of the headers
        tables.truth = [(*row[:8], *(scale * mm for mm in row[8:11]), *row[11:]) for row in tables.truth]
    return tables


def header_scale(options: dict[str, object]) -> float:
    """By how much the millimetres of the headers are longer than the patient's."""
    return float(str(options.get("scale", 1.0)))


def grain_tile(rng: np.random.Generator) -> np.ndarray:
    """Texture of tissues: a periodic (64, 64, 64) float32 tile of mean 0, deviation 1."""
    grain = ndimage.gaussian_filter(rng.standard_normal((64, 64, 64), dtype=np.float32), 0.6, mode="wrap")
    return np.asarray(grain / grain.std(), np.float32)


def header_options(rng: np.random.Generator, pitfalls: frozenset[str]) -> dict[str, object]:
    """Transfer syntax and unusual tags of one series' headers: options of `dicom_files.SliceFile`."""
    options: dict[str, object] = {}
    for name in ("missing_optional_tags", "monochrome1"):
        if name in pitfalls:
            options[name] = True
    if "rescale" in pitfalls:
        options["rescale"] = int(rng.choice([0, 0, -1024, 10]))
    if "missing_window" in pitfalls:
        options["window"] = "none"
    elif "multi_window" in pitfalls:
        options["window"] = "multi"
    if "other_syntax" in pitfalls:
        options["syntax"] = str(rng.choice(["explicit", "implicit", "deflated"]))
    return options


def draw_randomisation(rng: np.random.Generator, share: float) -> float:
    """How far a series' contrast lies from any sequence's, 0..1: the first draw of its stream, before its painter's."""
    return float(rng.uniform(0.3, 1.0)) if rng.random() < share else 0.0


class Painter:
    """Draws the slices of one series, all with one contrast and one scanner."""

    def __init__(
        self,
        rng: np.random.Generator,
        patient: an.Patient,
        body: volume.Volume,
        parameters: np.ndarray,
        grain: np.ndarray,
        plan: SeriesPlan,
        field_strength: float,
        contrast_randomisation: float,
        look: np.random.Generator | None = None,
        family: families.Family | None = None,
    ) -> None:
        """Draw contrast and scanner from ``rng``; ``look`` and ``family`` make the images unlike ordinary ones."""
        self.rng = rng
        sequence = sequences.draw_sequence(rng, plan.kind, field_strength)
        table, texture = sequences.randomised_signal(rng, parameters, sequence, contrast_randomisation)
        body_y = float(np.median(patient.stations_geometry[10:20, 1]))
        self.back_y = body_y + 75.0 + float(patient.trunk[an.SUBCUT_BACK])
        axial = plan.description == labels.AXIAL_T2
        self.scanner = artefacts.draw_scanner(rng, field_strength, contrast_randomisation, axial, body_y)
        self.window = hard_images.PLAIN
        if look is not None and axial:
            table = axial_images.recolour(look, table)
            canal = float(max(table[ts.CSF], table[ts.EPIDURAL_FAT]))
            self.scanner, level = axial_images.degrade(look, self.scanner, canal, self.back_y - body_y)
            self.window = axial_images.draw_window(look, level)
        elif look is not None:
            table = hard_images.recolour(look, table, plan.kind)
            self.scanner = hard_images.degrade(look, self.scanner, body_y)
            level = float(table[ts.MARROW + an.L5] * artefacts.coil_gain(self.scanner, self.back_y - body_y))
            self.scanner = replace(self.scanner, noise=min(self.scanner.noise, hard_images.NOISE * level))
            self.window = hard_images.draw_window(look, level)
        if family is not None:
            table, self.scanner, self.window = family.applied(table, self.scanner, self.window)
        self.painted = painting.paint(body, table, texture, grain, sequences.FAT_SHARE, self.scanner.chemical)
        self.peak = float(np.exp(rng.uniform(np.log(250), np.log(3200))))

    def slice(self, stack: StackPlan, origin: np.ndarray) -> np.ndarray:
        """One slice, (rows, columns) uint16 of at most 12 bits."""
        plane = (stack.row_mm, stack.column_mm, stack.normal, stack.thickness)
        out = painting.sample(self.painted, stack.shape, origin, *plane)
        if self.scanner.wrap > 0:  # aliasing: what lies beyond one edge of the field of view appears at the other
            rows, columns = stack.shape
            width = int(columns * self.scanner.wrap)
            out[:, -width:] += painting.sample(self.painted, (rows, width), origin - width * stack.column_mm, *plane)
            out[:, :width] += painting.sample(self.painted, (rows, width), origin + columns * stack.column_mm, *plane)
        out *= artefacts.shading(self.scanner, stack.shape, origin, stack.row_mm, stack.column_mm, self.back_y)
        spacing = (float(np.linalg.norm(stack.row_mm)), float(np.linalg.norm(stack.column_mm)))
        image = self.window.resampled(artefacts.scan(self.rng, out, self.scanner, spacing))
        return self.window.stored(image, self.peak)


def _write_series(
    painter: Painter,
    plan: SeriesPlan,
    folder: Path,
    study_id: int,
    series_id: int,
    pitfalls: frozenset[str],
    options: dict[str, object],
) -> None:
    scale = header_scale(options)
    for stack, instances in zip(plan.stacks, plan.instances, strict=True):
        row_step, column_step = np.linalg.norm(stack.row_mm), np.linalg.norm(stack.column_mm)
        for k, (origin, instance) in enumerate(zip(stack.origins, instances, strict=True)):
            pixels = painter.slice(stack, origin)
            if "mixed_sizes" in pitfalls and k % 7 == 6:
                pixels = np.ascontiguousarray(pixels[: pixels.shape[0] - 16])
            if options.get("monochrome1"):
                pixels = (4095 - pixels).astype(np.uint16)
            dicom_files.write_slice_file(
                folder / f"{instance}.dcm",
                dicom_files.SliceFile(
                    pixels=pixels,
                    origin=origin * scale,
                    row_direction=stack.column_mm / column_step,
                    column_direction=stack.row_mm / row_step,
                    pixel_spacing=(float(row_step) * scale, float(column_step) * scale),
                    slice_thickness=stack.thickness * scale,
                    spacing_between_slices=stack.spacing * scale,
                    instance_number=int(instance),
                    study_uid=f"{study_id}.1",
                    series_uid=f"{series_id}.1.1",
                    description=plan.description,
                    options=options,
                ),
            )


def _write_masks(request: Request, study_id: int, series_id: int, plan: SeriesPlan, body: volume.Volume) -> None:
    folder = Path(request.root) / "truth_masks" / str(study_id)
    folder.mkdir(parents=True, exist_ok=True)
    stack, instances = plan.stacks[0], plan.instances[0]
    masks = np.stack([mask_slice(body, stack, origin) for origin in stack.origins])
    with atomic_file(folder / f"{series_id}.npz", sync="none") as file:
        np.savez_compressed(file, masks=masks, instance_numbers=instances)
