"""Two crop sizes, view-major, another crop for every sample and view, repeatable from the seed."""

import pytest
import torch

from augment import CropSpec, MultiCrop, draw_examples, multi_crop
from config import Config
from data import ImageData, load_scenes


@pytest.fixture(scope="module")
def scenes() -> ImageData:
    return load_scenes(16, 8, seed=0)


@pytest.fixture(scope="module")
def colour() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8, generator=generator)
    labels = torch.eye(8)
    return ImageData(images, labels, images, labels, tuple("abcdefgh"), multi_label=False)


@pytest.mark.parametrize("kind", ["scenes", "colour"])
def test_shapes_and_range(kind, request):
    data = request.getfixturevalue(kind)
    augment = MultiCrop(data, CropSpec(2, 32, (0.3, 1.0)), CropSpec(3, 16, (0.1, 0.3)))
    global_crops, local_crops = augment(data.train_images[:5])
    assert global_crops.shape == (10, data.channels, 32, 32)
    assert local_crops.shape == (15, data.channels, 16, 16)
    pixels = global_crops * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)
    assert pixels.isfinite().all()
    assert pixels.min() > -0.5
    assert pixels.max() < 1.5
    assert pixels.std() > 0.05


def test_no_local_crops(scenes):
    augment = MultiCrop(scenes, CropSpec(2, 32, (0.3, 1.0)), CropSpec(0, 16, (0.1, 0.3)))
    assert augment(scenes.train_images)[1] is None


@pytest.mark.parametrize("kind", ["scenes", "colour"])
def test_every_sample_and_every_view_differs(kind, request):
    data = request.getfixturevalue(kind)
    augment = MultiCrop(data, CropSpec(2, 32, (0.3, 1.0)), CropSpec(2, 16, (0.1, 0.3)))
    one_image = data.train_images[:1].repeat(4, 1, 1, 1)
    for crops in augment(one_image):
        distances = torch.cdist(crops.flatten(1), crops.flatten(1))
        assert distances[~torch.eye(8, dtype=torch.bool)].min() > 1e-3
    for boxes in augment.boxes():
        assert len(boxes.unique(dim=0)) == 8  # it is not the noise alone that differs


def test_rows_are_view_major(scenes):
    """Row v*B + b is image b: a black image stays darkest wherever it is cropped."""
    images = torch.full((3, 1, 48, 48), 200, dtype=torch.uint8)
    images[1] = 0
    augment = MultiCrop(scenes, CropSpec(2, 32, (0.3, 1.0)), CropSpec(4, 16, (0.1, 0.3)))
    for crops in augment(images):
        means = crops.mean((1, 2, 3)).view(-1, 3)
        assert (means.argmin(1) == 1).all()


def test_boxes_lie_in_the_image_and_have_the_asked_area(scenes):
    augment = MultiCrop(scenes, CropSpec(2, 32, (0.5, 1.0)), CropSpec(2, 16, (0.05, 0.2)))
    augment(scenes.train_images)
    for boxes, (low, high) in zip(augment.boxes(), ((0.5, 1.0), (0.05, 0.2)), strict=True):
        assert boxes.min() >= 0
        assert boxes.max() <= 48
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 48**2
        assert area.min() > 0.75 * low
        assert area.max() < 1.25 * high


def test_the_global_seed_decides(scenes):
    augment = MultiCrop(scenes, CropSpec(2, 32, (0.3, 1.0)), CropSpec(2, 16, (0.1, 0.3)))

    def draw(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(augment(scenes.train_images))

    for a, b, c in zip(draw(1), draw(1), draw(2), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_images_are_not_written_to(scenes):
    images = scenes.train_images.clone()
    MultiCrop(scenes, CropSpec(2, 32, (0.3, 1.0)), CropSpec(2, 16, (0.1, 0.3)))(images)
    assert torch.equal(images, scenes.train_images)


def test_examples_are_fixed_and_leave_the_random_state_alone(scenes):
    config = Config(seed=5, local_crops=3)
    before = torch.get_rng_state()
    first = draw_examples(config, scenes, torch.device("cpu"))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(77)
    second = draw_examples(config, scenes, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.views, second.views, strict=True))
    assert [len(v) for v in first.views] == [8, 12]


def test_multi_crop_follows_the_config(scenes):
    config = Config(global_crops=3, global_size=24, local_size=12)
    global_crops, local_crops = multi_crop(config, scenes, 1)(scenes.train_images[:2])
    assert global_crops.shape == (6, 1, 24, 24)
    assert local_crops.shape == (2, 1, 12, 12)
