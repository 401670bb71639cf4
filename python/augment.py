"""Multi-crop augmentation by kornia, on the device of the batch.

Every random number comes from torch's global generators, so the random states in a checkpoint are
all that a resumed run needs to draw the same crops.
"""

from dataclasses import dataclass

import torch
from kornia import augmentation
from torch import Tensor, nn

from config import Config
from data import ImageData, to_float


@dataclass(frozen=True)
class CropSpec:
    """How many crops of which size (pixels) from which share of the image's area."""

    count: int
    size: int
    scale: tuple[float, float]


class MultiCrop(nn.Module):
    """uint8 images [B, C, H, W] -> (global crops [G*B, C, Sg, Sg], local crops [L*B, C, Sl, Sl]).

    View-major: rows v*B ... v*B + B - 1 are view v of the batch, so one crop size is one forward
    pass and `.view(V, B, D).transpose(0, 1)` is the [B, V, D] of the loss without a copy. With no
    local crops the second item is None. The crops come normalised by the data's mean and std.
    """

    def __init__(self, data: ImageData, global_crops: CropSpec, local_crops: CropSpec) -> None:
        super().__init__()
        self.specs = (global_crops, local_crops)
        self.pipelines = nn.ModuleList(_pipeline(data, spec) for spec in self.specs)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        global_crops, local_crops = (
            pipeline(to_float(images).repeat(spec.count, 1, 1, 1)) if spec.count else None
            for spec, pipeline in zip(self.specs, self.pipelines, strict=True)
        )
        assert global_crops is not None  # config.validate() wants at least two
        return global_crops, local_crops

    def boxes(self) -> tuple[Tensor, Tensor | None]:
        """Where the last crops lay in their images: [G*B, 4], [L*B, 4] as left top right bottom."""
        global_boxes, local_boxes = (
            # Kornia keeps the corners, clockwise from the top left one: [V*B, 4, 2] as (x, y).
            pipeline[0]._params["src"][:, ::2].flatten(1) if spec.count else None
            for spec, pipeline in zip(self.specs, self.pipelines, strict=True)
        )
        return global_boxes, local_boxes


def _pipeline(data: ImageData, spec: CropSpec) -> nn.Module:
    crop = augmentation.RandomResizedCrop(
        (spec.size, spec.size), scale=spec.scale, cropping_mode="slice"
    )
    if data.colour:
        # SimSiam's CIFAR recipe: its ImageNet recipe without the blur.
        changes = [
            augmentation.RandomHorizontalFlip(),
            augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            augmentation.RandomGrayscale(p=0.2),
        ]
    else:
        # Digits: a mirror image would be another shape, and there is no colour to change.
        changes = [
            augmentation.RandomBrightness((0.7, 1.3)),
            augmentation.RandomContrast((0.5, 1.5)),
            augmentation.RandomGaussianNoise(std=0.05, p=1.0),
        ]
    return nn.Sequential(crop, *changes, augmentation.Normalize(data.mean, data.std))


def multi_crop(config: Config, data: ImageData, local_crops: int) -> MultiCrop:
    return MultiCrop(
        data,
        CropSpec(config.global_crops, config.global_size, config.global_scale),
        CropSpec(local_crops, config.local_size, config.local_scale),
    )


@dataclass(frozen=True)
class Examples:
    """Crops of a few test images for the pictures: the same at every time, for every method."""

    images: Tensor  # uint8 [N, C, H, W]
    views: tuple[Tensor, ...]  # the global crops [G*N, C, S, S], then the local ones, if any
    boxes: tuple[Tensor, ...]  # [G*N, 4], [L*N, 4]: left top right bottom in the image


def draw_examples(
    config: Config, data: ImageData, device: torch.device, count: int = 4
) -> Examples:
    images = data.test_images[:count]
    augment = multi_crop(config, data, config.local_crops)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # The run's own random state stays as it is.
        torch.manual_seed(config.seed)
        views = augment(images.to(device))
    return Examples(
        images,
        tuple(v for v in views if v is not None),
        tuple(b.cpu() for b in augment.boxes() if b is not None),
    )
