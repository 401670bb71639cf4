"""What the examples learn from: noisy patterns, and how well their crops find each other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patterns(count: int, seed: int = 0) -> Tensor:
    """Images [count, 3, 32, 32]: a colour of their own, and others that run into each other."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 4, 4, generator=generator)
    own = torch.randn(count, 3, 1, 1, generator=generator)
    return own + F.interpolate(colours, (32, 32), mode="bicubic")


def crop(images: Tensor, low: float, high: float) -> Tensor:
    """One crop of each image, [B, 3, 16, 16]: a window of low to high of its side, under noise."""
    count = len(images)
    side = low + (high - low) * torch.rand(count)
    middle = (2 * torch.rand(count, 2) - 1) * (1 - side)[:, None]
    window = torch.cat([torch.diag_embed(side[:, None].expand(-1, 2)), middle[..., None]], 2)
    grid = F.affine_grid(window, [count, 3, 16, 16], align_corners=False)
    crops = F.grid_sample(images, grid, align_corners=False)
    return crops + 0.5 * torch.randn_like(crops)


def encoder(dim: int) -> nn.Module:
    """No batch norm, so that an image's embedding does not depend on the others of its batch."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, dim)),
    )


@torch.no_grad()
def found(network: nn.Module, images: Tensor) -> float:
    """Of how many images a local crop is nearer to a global crop of it than to any other's."""
    network.eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        local = F.normalize(network(crop(images, 0.3, 0.6)))
        whole = F.normalize(network(crop(images, 0.6, 1.0)))
    network.train()
    nearest = (local @ whole.T).argmax(1)
    return (nearest == torch.arange(len(images))).float().mean().item()
