"""Classifiers of one level: sequences of crops → logits of each condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig
from lumbar.models.backbone import Backbone
from lumbar.models.examples import Examples, example_size
from lumbar.models.sequence import MaskedBiLSTM, PositionMm, masked_mean

N_LEVELS = 5
EXAMPLE_SLICES = 6  # of a network that takes any number of them
_AT_ONCE = 64  # images that go through a backbone together where no gradient is kept: whole series fit no small GPU


class CropEncoder(nn.Module):
    """Crops (B, S, H, W) → step features (B, S, F): backbone, level embedding, position embedding; 0 where masked.

    A position is the step's index in a window, or a distance in mm where all slices enter (``max_slices``).
    """

    def __init__(self, config: SagittalClassifierConfig | AxialClassifierConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone, size=config.size)
        self.level = nn.Embedding(N_LEVELS, config.level_embedding)
        self.in_mm = config.max_slices > 0
        width = config.position_embedding
        self.position = PositionMm(width) if self.in_mm else nn.Embedding(config.window, width)
        self.features = self.backbone.features + config.level_embedding + width

    def forward(self, crops: Tensor, mask: Tensor, level: Tensor, position_mm: Tensor | None = None) -> Tensor:
        """Crops (B, S, H, W) in 0..1, mask (B, S) bool, level (B,) in 0..4, mm (B, S) → (B, S, features)."""
        b, s = mask.shape
        flat = torch.nonzero(mask.reshape(-1)).squeeze(1)
        if flat.numel() == 0:
            return crops.new_zeros(b, s, self.features)
        images = crops.reshape(b * s, 1, *crops.shape[2:])[flat]
        if self.in_mm:
            if position_mm is None:
                raise ValueError("position_mm: found None, expected the slices' distances in mm")
            place = position_mm.reshape(-1)[flat]
        else:
            place = torch.arange(s, device=crops.device).repeat(b)[flat]
        steps = torch.cat(
            [self._seen(images), self.level(level.repeat_interleave(s)[flat]), self.position(place)], dim=1
        )
        out = steps.new_zeros(b * s, self.features)
        return out.index_copy(0, flat, steps).view(b, s, -1)

    def _seen(self, images: Tensor) -> Tensor:
        if not self.in_mm or torch.is_grad_enabled() or len(images) <= _AT_ONCE:
            return self.backbone(images)
        return torch.cat([self.backbone(part) for part in torch.split(images, _AT_ONCE)])


def example_positions(n: int) -> Tensor:
    """Distances (n,) in mm of example slices, 4 mm apart about the middle."""
    return 4.0 * (torch.arange(n, dtype=torch.float32) - (n - 1) / 2)


class SagittalClassifier(nn.Module):
    """Crops of one level in T2 and T1 → logits (B, 5, 3); rows of conditions that it does not grade are 0.

    Input ``crops`` (B, 3, W, size, size) in 0..1: window 0 the T2 slices around the canal slice (right to left),
    window 1 the T1 slices around the left foramen and window 2 those around the right one, each from the midline
    outwards; ``mask`` (B, 3, W) bool; ``level`` (B,). With ``max_slices`` it is (B, 2, S, size, size): all slices of
    T2, then all of T1, right to left, with ``position_mm`` (B, 2, S), positive on the patient's left.
    """

    def __init__(self, config: SagittalClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.targets = config.conditions
        self.encoder = CropEncoder(config)
        n_sides = 1 if config.share_sides else 2
        self.canal = MaskedBiLSTM(self.encoder.features, config.hidden)
        self.sides = nn.ModuleList(MaskedBiLSTM(self.encoder.features, config.hidden) for _ in range(n_sides))
        self.drop = nn.Dropout(config.dropout)
        width = self.canal.features * (2 if config.share_sides else 1)
        self.canal_head = nn.Linear(width, 3)
        self.side_heads = nn.ModuleList(nn.Linear(width, 3) for _ in range(n_sides))
        if 3 in config.conditions:  # T2 shows the recess, T1 the fat about it
            both = 2 * self.canal.features
            self.recess_heads = nn.ModuleList(nn.Linear(both, 3) for _ in range(n_sides))

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """One level's windows, with a slice that is not there."""
        size = example_size(self.config)
        n, window = (2, EXAMPLE_SLICES) if self.config.max_slices else (3, self.config.window)
        crops = examples.images(n * window, size).view(1, n, window, size, size)
        mask = torch.ones(1, n, window, dtype=torch.bool)
        mask[0, 1, -1] = False
        if not self.config.max_slices:
            return crops, mask, torch.tensor([3])
        return crops, mask, torch.tensor([3]), example_positions(window).expand(1, n, window).contiguous()

    def forward(self, crops: Tensor, mask: Tensor, level: Tensor, position_mm: Tensor | None = None) -> Tensor:
        """(B, N, W, H, W'), (B, N, W), (B,), (B, N, W) → (B, 5, 3)."""
        return self.graded(crops, mask, level, position_mm)[0]

    def graded(
        self, crops: Tensor, mask: Tensor, level: Tensor, position_mm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits as ``forward`` gives them, and the features that they rest on, (B, 3, F): canal, left, right."""
        canal, side = self._sequences(crops, mask, level, position_mm)
        if self.config.share_sides:
            canal_in = torch.cat([canal, (side[0] + side[1]) / 2], dim=1)
            side_in = [torch.cat([features, canal], dim=1) for features in side]
        elif self.config.own_sequences:  # as in solution 12y8: each head reads its own sequence
            canal_in, side_in = canal, side
        else:  # as in older bundles: every head reads the mean of the three sequences
            canal_in = torch.stack([canal, *side]).mean(dim=0)
            side_in = [canal_in, canal_in]
        out = crops.new_zeros(len(crops), 5, 3)
        out[:, 0] = self.canal_head(self.drop(canal_in)).to(out.dtype)
        for i in range(2):
            out[:, 1 + i] = self.side_heads[i % len(self.side_heads)](self.drop(side_in[i])).to(out.dtype)
            if 3 in self.targets:
                recess_in = torch.cat([side[i], canal], dim=1)
                out[:, 3 + i] = self.recess_heads[i % len(self.recess_heads)](self.drop(recess_in)).to(out.dtype)
        return out, torch.stack([canal, *side], dim=1)

    def _sequences(
        self, crops: Tensor, mask: Tensor, level: Tensor, position_mm: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Means over slices of the canal's sequence and of the left and the right one, (B, F) each."""
        if position_mm is not None and self.config.share_sides:  # the right side is seen from the midline outwards too
            crops = torch.cat([crops, crops[:, 1:].flip(2)], dim=1)
            mask = torch.cat([mask, mask[:, 1:].flip(2)], dim=1)
            position_mm = torch.cat([position_mm, -position_mm[:, 1:].flip(2)], dim=1)
        b, n, w = mask.shape
        places = None if position_mm is None else position_mm.flatten(0, 1)
        steps = self.encoder(crops.flatten(0, 1), mask.flatten(0, 1), level.repeat_interleave(n), places)
        steps = steps.view(b, n, w, -1)
        canal = masked_mean(self.canal(steps[:, 0], mask[:, 0]), mask[:, 0])
        side = []
        for i in range(2):
            window = min(1 + i, n - 1)  # both sides read the same T1 slices where all of them enter
            read = self.sides[i % len(self.sides)](steps[:, window], mask[:, window])
            side.append(masked_mean(read, mask[:, window]))
        return canal, side


class AxialClassifier(nn.Module):
    """Axial crops of one level → logits (B, 5, 3); rows of conditions that it does not grade are 0.

    Input ``crops`` (B, W, size, size) in 0..1 from foot to head, patient's left on the image's right, ``mask``
    (B, W), ``level`` (B,). With ``share_sides`` each side is seen as the image's right through the same weights:
    mirrored crops give side-swapped logits exactly. With ``max_slices`` W is any number, and ``position_mm`` (B, W)
    tells how far above the level each slice lies.
    """

    def __init__(self, config: AxialClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.targets = config.conditions
        self.encoder = CropEncoder(config)
        n_sides = 1 if config.share_sides else 2
        self.sides = nn.ModuleList(MaskedBiLSTM(self.encoder.features, config.hidden) for _ in range(n_sides))
        self.drop = nn.Dropout(config.dropout)
        width = 2 * config.hidden
        self.heads = nn.ModuleDict()
        if 0 in config.conditions:
            self.heads["canal"] = nn.Linear(width if config.share_sides else 2 * width, 3)
        for name, first in (("foraminal", 1), ("subarticular", 3)):
            if first in config.conditions:
                for i in range(n_sides):
                    self.heads[f"{name}{i}"] = nn.Linear(width, 3)

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """One level's window, with a slice that is not there."""
        window = EXAMPLE_SLICES if self.config.max_slices else self.config.window
        mask = torch.ones(1, window, dtype=torch.bool)
        mask[0, 0] = False
        inputs = examples.images(window, example_size(self.config))[None], mask, torch.tensor([2])
        return (*inputs, example_positions(window)[None]) if self.config.max_slices else inputs

    def forward(self, crops: Tensor, mask: Tensor, level: Tensor, position_mm: Tensor | None = None) -> Tensor:
        """(B, W, H, W'), (B, W), (B,), (B, W) → (B, 5, 3)."""
        return self.graded(crops, mask, level, position_mm)[0]

    def graded(
        self, crops: Tensor, mask: Tensor, level: Tensor, position_mm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits as ``forward`` gives them, and the features that they rest on, (B, 3, F): both sides, left, right."""
        if self.config.share_sides:
            both = torch.cat([crops, crops.flip(-1)])  # the patient's left side first, then the right one
            places = None if position_mm is None else position_mm.repeat(2, 1)
            steps = self.encoder(both, mask.repeat(2, 1), level.repeat(2), places)
            features = self.sides[0](steps, mask.repeat(2, 1))
            side = list(masked_mean(features, mask.repeat(2, 1)).chunk(2))
        else:
            steps = self.encoder(crops, mask, level, position_mm)
            side = [masked_mean(rnn(steps, mask), mask) for rnn in self.sides]
        out = crops.new_zeros(*crops.shape[:1], 5, 3)
        if "canal" in self.heads:
            canal = (side[0] + side[1]) / 2 if self.config.share_sides else torch.cat(side, dim=1)
            out[:, 0] = self.heads["canal"](self.drop(canal)).to(out.dtype)
        for name, first in (("foraminal", 1), ("subarticular", 3)):
            for i in range(2):
                key = f"{name}{0 if self.config.share_sides else i}"
                if key in self.heads:
                    out[:, first + i] = self.heads[key](self.drop(side[i])).to(out.dtype)
        return out, torch.stack([(side[0] + side[1]) / 2, *side], dim=1)
