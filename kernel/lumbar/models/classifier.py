"""Classifiers of one level: sequences of crops → logits of each condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig
from lumbar.models.backbone import Backbone
from lumbar.models.examples import Examples, example_size
from lumbar.models.sequence import MaskedBiLSTM, masked_mean

N_LEVELS = 5


class CropEncoder(nn.Module):
    """Crops (B, S, H, W) → step features (B, S, F): backbone, level embedding, position embedding; 0 where masked."""

    def __init__(self, backbone: Backbone, level_embedding: int, position_embedding: int, window: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.level = nn.Embedding(N_LEVELS, level_embedding)
        self.position = nn.Embedding(window, position_embedding)
        self.features = backbone.features + level_embedding + position_embedding

    def forward(self, crops: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """Crops (B, S, H, W) in 0..1, mask (B, S) bool, level (B,) in 0..4 → (B, S, features)."""
        b, s = mask.shape
        flat = torch.nonzero(mask.reshape(-1)).squeeze(1)
        images = crops.reshape(b * s, 1, *crops.shape[2:])[flat]
        position = torch.arange(s, device=crops.device).repeat(b)[flat]
        if flat.numel() == 0:
            return crops.new_zeros(b, s, self.features)
        steps = torch.cat(
            [self.backbone(images), self.level(level.repeat_interleave(s)[flat]), self.position(position)], dim=1
        )
        out = steps.new_zeros(b * s, self.features)
        return out.index_copy(0, flat, steps).view(b, s, -1)


class SagittalClassifier(nn.Module):
    """Three windows of crops of one level → logits (B, 5, 3) of the canal and both foramina; subarticular rows are 0.

    Input ``crops`` (B, 3, W, size, size) in 0..1: window 0 the T2 slices around the canal slice (right to left),
    window 1 the T1 slices around the left foramen and window 2 those around the right one, each from the midline
    outwards; ``mask`` (B, 3, W) bool; ``level`` (B,).
    """

    targets = (0, 1, 2)

    def __init__(self, config: SagittalClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = CropEncoder(
            Backbone(config.backbone, size=config.size),
            config.level_embedding,
            config.position_embedding,
            config.window,
        )
        n_sides = 1 if config.share_sides else 2
        self.canal = MaskedBiLSTM(self.encoder.features, config.hidden)
        self.sides = nn.ModuleList(MaskedBiLSTM(self.encoder.features, config.hidden) for _ in range(n_sides))
        self.drop = nn.Dropout(config.dropout)
        width = self.canal.features * (2 if config.share_sides else 1)
        self.canal_head = nn.Linear(width, 3)
        self.side_heads = nn.ModuleList(nn.Linear(width, 3) for _ in range(n_sides))

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """One level's three windows, with one slice masked."""
        size, window = example_size(self.config), self.config.window
        crops = examples.images(3 * window, size).view(1, 3, window, size, size)
        mask = torch.ones(1, 3, window, dtype=torch.bool)
        mask[0, 1, -1] = False
        return crops, mask, torch.tensor([3])

    def forward(self, crops: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """(B, 3, W, H, W'), (B, 3, W), (B,) → (B, 5, 3)."""
        b, n, w = mask.shape
        steps = self.encoder(crops.flatten(0, 1), mask.flatten(0, 1), level.repeat_interleave(n))
        steps = steps.view(b, n, w, -1)
        canal = masked_mean(self.canal(steps[:, 0], mask[:, 0]), mask[:, 0])  # (B, F)
        side = [
            masked_mean(self.sides[i % len(self.sides)](steps[:, 1 + i], mask[:, 1 + i]), mask[:, 1 + i])
            for i in range(2)
        ]
        if self.config.share_sides:
            canal_in = torch.cat([canal, (side[0] + side[1]) / 2], dim=1)
            side_in = [torch.cat([features, canal], dim=1) for features in side]
        elif self.config.own_sequences:  # as in solution 12y8: each head reads its own sequence
            canal_in, side_in = canal, side
        else:  # as in older bundles: every head reads the mean of the three sequences
            canal_in = torch.stack([canal, *side]).mean(dim=0)
            side_in = [canal_in, canal_in]
        out = crops.new_zeros(b, 5, 3)
        out[:, 0] = self.canal_head(self.drop(canal_in)).to(out.dtype)
        for i in range(2):
            out[:, 1 + i] = self.side_heads[i % len(self.side_heads)](self.drop(side_in[i])).to(out.dtype)
        return out


class AxialClassifier(nn.Module):
    """Axial crops of one level → logits (B, 5, 3); rows of conditions that it does not grade are 0.

    Input ``crops`` (B, W, size, size) in 0..1 from foot to head, patient's left on the image's right, ``mask``
    (B, W), ``level`` (B,). With ``share_sides`` each side is seen as the image's right through the same weights:
    mirrored crops give side-swapped logits exactly.
    """

    def __init__(self, config: AxialClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.targets = config.conditions
        self.encoder = CropEncoder(
            Backbone(config.backbone, size=config.size),
            config.level_embedding,
            config.position_embedding,
            config.window,
        )
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
        """One level's window, with one slice masked."""
        window = self.config.window
        mask = torch.ones(1, window, dtype=torch.bool)
        mask[0, 0] = False
        return examples.images(window, example_size(self.config))[None], mask, torch.tensor([2])

    def forward(self, crops: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """(B, W, H, W'), (B, W), (B,) → (B, 5, 3)."""
        if self.config.share_sides:
            both = torch.cat([crops, crops.flip(-1)])  # the patient's left side first, then the right one
            steps = self.encoder(both, mask.repeat(2, 1), level.repeat(2))
            features = self.sides[0](steps, mask.repeat(2, 1))
            side = list(masked_mean(features, mask.repeat(2, 1)).chunk(2))
        else:
            steps = self.encoder(crops, mask, level)
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
        return out
