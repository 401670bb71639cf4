"""Scenes: images composed of small ones; scikit-learn's digits need no download."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Glyphs [1797, 8, 8] in [0, 1], what they show [1797], and which are kept for testing.

    Every fourth is, so that no handwriting appears on both sides.
    """
    data = load_digits()
    glyphs = torch.from_numpy(data.images).float() / 16
    return glyphs, torch.from_numpy(data.target).long(), torch.arange(len(glyphs)) % 4 == 3


def compose_scenes(
    glyphs: Tensor, labels: Tensor, count: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Glyphs [M, s, s], labels [M] -> uint8 [count, 1, size, size], multi-hot [count, 10].

    A kind comes several times in different hands: what two crops share is the kind, not the pixels.
    Digits fill the scene (3 x 3, each shifted by up to half a cell), because in a sparse scene the
    places of the digits give the image away: SimSiam then learns the layout, and its loss falls
    while kNN does not rise.
    """
    cell = size / 3
    sides = range(round(0.8 * cell), round(1.15 * cell) + 1)
    members = [torch.nonzero(labels == kind).flatten().tolist() for kind in range(10)]
    images = torch.empty(count, 1, size, size, dtype=torch.uint8)
    targets = torch.zeros(count, 10)
    for n in range(count):
        number = int(torch.randint(1, 4, (), generator=generator))
        kinds = torch.randperm(10, generator=generator)[:number].tolist()
        targets[n, kinds] = 1
        scene = torch.zeros(size, size)
        places = torch.randperm(9, generator=generator).tolist()
        draws = torch.rand(9, 4, generator=generator).tolist()
        for i, (place, draw) in enumerate(zip(places, draws, strict=True)):
            side = sides[int(draw[0] * len(sides))]
            hands = members[kinds[i % number]]
            glyph = glyphs[hands[int(draw[1] * len(hands))]]
            # One at a time: 60,000 garments in every size would take gigabytes.
            glyph = F.interpolate(glyph[None, None], (side, side), mode="bilinear")[0, 0]
            top, left = (
                min(max(round((at + shift) * cell - side / 2), 0), size - side)
                for at, shift in zip(divmod(place, 3), draw[2:], strict=True)
            )
            patch = scene[top : top + side, left : left + side]
            torch.maximum(patch, glyph, out=patch)
        noise = 0.1 * torch.randn(size, size, generator=generator)
        images[n, 0] = ((0.05 + 0.8 * scene + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return images, targets
