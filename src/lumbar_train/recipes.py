"""Named recipes: for each stage its network, its augmentation and how it is fitted. Variants: ``dataclasses.replace``.

``model2`` follows the solution's table (backbones, sizes, losses, epochs, learning rates), ``demo`` is small enough
for two CPU cores and made for synthetic cohorts, ``strong`` is model2 with what other teams' ablations favour. The
backbones of the latter two start from timm's pretrained weights unless the command line says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lumbar.config import (
    CLASSIFIERS,
    AggregatorConfig,
    AxialClassifierConfig,
    AxialRegressionConfig,
    BackboneConfig,
    HeatmapConfig,
    LevelSequenceConfig,
    SagittalClassifierConfig,
    SagittalRegressionConfig,
    SeriesContrastConfig,
    SliceRoleConfig,
)
from lumbar.errors import CohortError
from lumbar_train.data.augment import LOCALISER_AUGMENT, SOLUTION_AUGMENT, AugmentConfig
from lumbar_train.data.folds import is_full
from lumbar_train.data.mixing import MixConfig
from lumbar_train.stages.consistency import ConsistencyConfig
from lumbar_train.stages.denoise import DenoiseConfig
from lumbar_train.stages.fusion import FusionRecipe
from lumbar_train.stages.pseudo import PseudoConfig


@dataclass(frozen=True)
class Fit:
    """How a stage is fitted: cosine schedule with warm-up, AdamW; ``repeats`` samples a study and epoch (localiser).

    ``fold_epochs`` (0: as ``epochs``) is for the fits on folds: they see fewer studies, so fewer steps an epoch, and
    out-of-fold logits should come from networks fitted about as far as the one that ships. ``metric_epochs`` follow
    for a classifier at the rate ``metric_lr``: whole studies, with the competition's metric as the loss.
    ``accumulate`` cuts a batch into parts that are run one after the other; ``checkpointing`` computes the backbone's
    activations anew in the backward pass: a third more time, less memory.
    """

    epochs: int
    lr: float
    batch: int
    weight_decay: float = 1e-2
    warmup: float = 0.1
    repeats: int = 1
    ema: float = 0.0
    accumulate: int = 1
    clip: float = 1.0
    fold_epochs: int = 0
    metric_epochs: int = 0
    metric_lr: float = 0.0
    checkpointing: bool = False


@dataclass(frozen=True)
class StageRecipe:
    """One stage: the network's configuration, its fit, its augmentation and mixing of samples (None: none)."""

    network: Any
    fit: Fit
    augment: AugmentConfig | None = None
    mixing: MixConfig | None = None

    def for_fold(self, fold: int) -> StageRecipe:
        """The same stage as it is fitted on a fold, or on all studies."""
        fit = self.fit
        return self if is_full(fold) or not fit.fold_epochs else replace(self, fit=replace(fit, epochs=fit.fold_epochs))


@dataclass(frozen=True)
class Recipe:
    """All stages of a run.

    ``n_folds`` are made where no table says otherwise, and all of them are fitted beside ``full`` unless ``--folds``
    chooses; ``full_seeds`` is the number of fits on all data, ``pretrained`` whether backbones start from timm's
    weights unless the command line says otherwise.
    """

    name: str
    stages: dict[str, StageRecipe] = field(default_factory=dict)
    n_folds: int = 4
    export: str = "full"  # which fits ship: "full", "folds" or "all"
    full_seeds: int = 1
    pretrained: bool = False
    denoise: DenoiseConfig | None = None  # a second training of the classifiers without suspect labels
    pseudo: PseudoConfig | None = None  # labels mixed with predictions in the classifiers' last training
    fusion: FusionRecipe | None = None  # a head on the features of all classifiers, kept where it helps
    consistency: ConsistencyConfig | None = None  # no labels whose points lie outside the predicted crops


# The demo's backbone: timm's ten-layer ResNet, narrowed, with GroupNorm: 0.57 M parameters.
_SMALL = BackboneConfig("resnet10t", channels=(24, 48, 96, 160), stem_width=16, norm="group")
_MILD = AugmentConfig()
# The same in every recipe: contrast is what it must tell, so intensities are drawn gently and never inverted, while any
# turn shows it as well: of sagittal series alone it learns contrasts that it then knows on axial ones.
CONTRAST = StageRecipe(
    SeriesContrastConfig(),
    Fit(epochs=20, lr=3e-3, batch=32, ema=0.99),
    AugmentConfig(shift_mm=25.0, turn_deg=180.0, zoom=0.4, contrast=0.3, shading=0.3, noise=0.05, blur=0.3, hole=0.0),
)


def demo() -> Recipe:
    """Small networks for phantoms: two folds for out-of-fold outputs, one full fit that ships."""
    axial = AugmentConfig(shift_mm=15.0, turn_deg=12.0, zoom=0.2, contrast=0.8, shading=0.5, noise=0.05, blur=0.3)
    classifier = Fit(epochs=9, lr=1e-3, batch=8, weight_decay=2e-2, ema=0.995, fold_epochs=12)
    crops: dict[str, Any] = {
        "hidden": 64,
        "level_embedding": 8,
        "position_embedding": 8,
        "share_sides": True,
        "dropout": 0.2,
    }
    return Recipe(
        name="demo",
        n_folds=2,
        stages={
            "sagittal_xy": StageRecipe(
                HeatmapConfig(points=11, size=256, mm_per_px=1.3, context=3, segments=7),
                Fit(epochs=10, lr=2e-3, batch=16, repeats=6, ema=0.99),
                LOCALISER_AUGMENT,
            ),
            "sagittal_z": StageRecipe(
                SliceRoleConfig(_SMALL, size=80, hidden=48),
                Fit(epochs=5, lr=1e-3, batch=4, ema=0.99),
                replace(LOCALISER_AUGMENT, shift_mm=6.0, turn_deg=8.0, zoom=0.12),
            ),
            "axial_xy": StageRecipe(
                HeatmapConfig(points=2, size=160, mm_per_px=1.2, context=1, widths=(16, 24, 32, 48, 64), segments=0),
                Fit(epochs=6, lr=2e-3, batch=16, ema=0.99),
                axial,
            ),
            "sagittal_classifier": StageRecipe(
                SagittalClassifierConfig(_SMALL, size=64, window=3, crop_scale=0.65, **crops),
                replace(classifier, epochs=12, fold_epochs=15),
                _MILD,
            ),
            "axial_subarticular": StageRecipe(
                AxialClassifierConfig(_SMALL, conditions=(3, 4), size=88, window=3, **crops),
                classifier,
                _MILD,
            ),
            "axial_all": StageRecipe(
                AxialClassifierConfig(_SMALL, conditions=(0, 1, 2, 3, 4), size=88, window=3, **crops),
                classifier,
                _MILD,
            ),
            "aggregator": StageRecipe(
                # Lightly, as the solution does: out-of-fold logits come from weaker fits than those that ship.
                AggregatorConfig(hidden=16),
                Fit(epochs=100, lr=1e-3, batch=100_000, weight_decay=1.0),
            ),
            "series_contrast": replace(CONTRAST, fit=replace(CONTRAST.fit, epochs=100)),
        },
    )


_RW_T = BackboneConfig("efficientnetv2_rw_t")
_RW_S = BackboneConfig("efficientnetv2_rw_s")


def model2() -> Recipe:
    """The solution's configurations, stage by stage, with its faults mended.

    Sizes, epochs, rates and batches are those of ``configs/`` of its public code
    (darraghdog/kaggle-rsna-2024-6th-place-solution-model2); what differs says why.
    """
    locate = AugmentConfig(
        shift_mm=20.0, turn_deg=10.0, zoom=0.15, contrast=0.3, shading=0.1, noise=0.02, hole=0.5, on_device=True
    )
    axial_crops = replace(SOLUTION_AUGMENT, keep_slices=(0.5, 0.9))  # cfg_dh_29a2: aug_seq_range
    # All slices: sagittal series of the competition have at most 38; +- 0.7 of the gap between levels (29a2:
    # sequence_buffer_ratio_ax) is +- 24 mm, 32 slices of 1.5 mm.
    axial: dict[str, Any] = {"per_series": True, "max_slices": 32}
    fit = Fit(6, 4e-4, 8, weight_decay=1e-4)
    return Recipe(
        name="model2",
        pretrained=True,
        full_seeds=4,  # the solution fits every network four times on all data: folds -1 -1 -1 -1
        consistency=ConsistencyConfig(),  # ds_dh_12s3
        stages={
            "sagittal_xy": StageRecipe(
                SagittalRegressionConfig(_RW_S, foramina_by_role=True), Fit(8, 2e-4, 32, repeats=16), locate
            ),
            "sagittal_z": StageRecipe(SliceRoleConfig(_RW_T), Fit(8, 2e-4, 6), replace(locate, shift_mm=6.0)),
            "axial_xy": StageRecipe(AxialRegressionConfig(_RW_T), Fit(16, 2e-4, 16), locate),
            # 12y8, and the subarticular pair besides: the 6th place's other sagittal models (TheoViel) and the 2nd
            # place's answer all fifteen
            "sagittal_classifier": StageRecipe(
                SagittalClassifierConfig(
                    _RW_T, own_sequences=True, conditions=(0, 1, 2, 3, 4), per_series=True, max_slices=40
                ),
                replace(fit, epochs=5),
                SOLUTION_AUGMENT,
            ),
            "axial_subarticular": StageRecipe(AxialClassifierConfig(_RW_T, **axial), fit, axial_crops),
            "axial_all": StageRecipe(
                AxialClassifierConfig(_RW_T, conditions=(0, 1, 2, 3, 4), **axial), fit, axial_crops
            ),
            # The solution's rate, 7e-5, goes with 4,096 hidden units; 64 need more. On synthetic out-of-fold logits
            # (tests/support/synthetic_logits.py) of 1,975 studies pool 0.423; 64 units at 7e-5 0.402, at 1e-3 0.362, at
            # 2e-3 0.362; 4,096 units at 7e-5 0.365 in twenty times the time.
            "aggregator": StageRecipe(AggregatorConfig(hidden=64), Fit(15, 1e-3, 128, weight_decay=1.0)),
            "series_contrast": CONTRAST,
        },
    )


def strong() -> Recipe:
    """model2 with what other teams' ablations favour.

    Heatmap localisers on a fixed millimetre grid; averaged weights; CutMix and mixup over more epochs, then epochs on
    the metric itself for the classifiers; suspect labels left out of a second training, in which labels are mixed with
    predictions; an aggregator over the sequence of levels that knows how sure localisation is; several seeds of the
    fit on all data.
    """
    base = model2()
    axial = replace(LOCALISER_AUGMENT, shift_mm=15.0, turn_deg=12.0, zoom=0.2, on_device=True)
    stages = {name: replace(stage, fit=replace(stage.fit, ema=0.999)) for name, stage in base.stages.items()}
    stages["series_contrast"] = base.stages["series_contrast"]
    for name in CLASSIFIERS:
        # TheoViel's crop models take 10 epochs with mixup always on; the 2nd place mixes with chance 0.3 over 40.
        fit = replace(stages[name].fit, epochs=12, metric_epochs=2, metric_lr=4e-5)
        stages[name] = replace(stages[name], fit=fit, mixing=MixConfig(cutmix=0.3, mixup=0.3))
    # On synthetic out-of-fold logits of 800 studies: pool 0.459, this at 5e-4 0.420, at 2e-3 0.383, at 4e-3 0.379.
    stages["aggregator"] = StageRecipe(
        LevelSequenceConfig(hidden=32, dropout=0.2, confidence=True),
        replace(base.stages["aggregator"].fit, lr=2e-3, weight_decay=0.1),
    )
    stages["sagittal_xy"] = StageRecipe(
        HeatmapConfig(points=11, size=384, mm_per_px=0.9, context=5, backbone="efficientnetv2_rw_t"),
        Fit(12, 4e-4, 32, repeats=16, ema=0.999),
        replace(LOCALISER_AUGMENT, on_device=True),
    )
    stages["axial_xy"] = StageRecipe(
        HeatmapConfig(points=2, size=320, mm_per_px=0.7, context=1, segments=0, backbone="efficientnetv2_rw_t"),
        Fit(16, 4e-4, 16, ema=0.999),
        axial,
    )
    # Half the label, half the prediction: the 2nd place's second round.
    return replace(base, name="strong", stages=stages, denoise=DenoiseConfig(), pseudo=PseudoConfig(share=0.5))


RECIPES: dict[str, Callable[[], Recipe]] = {"demo": demo, "model2": model2, "strong": strong}


def recipe_by_name(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        CohortError: the name is unknown.
    """
    if name not in RECIPES:
        raise CohortError(f"recipe {name!r}: unknown, expected one of {sorted(RECIPES)}")
    return RECIPES[name]()


def with_full_epochs(recipe: Recipe, words: list[str]) -> Recipe:
    """The recipe with other epochs for some stages' fits on all data, from words ``STAGE=N``; folds keep theirs.

    Raises:
        CohortError: no such stage, or no number of epochs.
    """
    stages = dict(recipe.stages)
    for word in words:
        name, _, number = word.partition("=")
        if name not in stages or not number.isdigit() or int(number) < 1:
            names = ", ".join(stages)
            raise CohortError(f"--full-epochs: found {word!r}, expected STAGE=N, N from 1, STAGE of {names}")
        fit = stages[name].fit
        stages[name] = replace(
            stages[name], fit=replace(fit, epochs=int(number), fold_epochs=fit.fold_epochs or fit.epochs)
        )
    return replace(recipe, stages=stages)
