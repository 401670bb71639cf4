"""SimSiam-LoGo on scikit-learn's handwritten digits, on one page: python python/minimal.py

An encoder learns from crops of noisy digits, without labels; half a minute. It prints how often kNN
on its features tells digits that it has not seen, before and after, and what raw pixels give: much,
since the digits are tiny and centred. train.py compares methods where pixels give little.
"""

import math

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomResizedCrop
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from logo_kernels import LoGoLoss

G, L, DIM, BATCH, NOISE = 2, 4, 128, 128, 0.3  # global and local crops of an image, embedding


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images [N, 1, 16, 16], enlarged from 8 x 8, under noise, and what each shows."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(images, (16, 16), mode="bilinear")
    return images + NOISE * torch.randn_like(images), torch.from_numpy(data.target)


def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def knn_accuracy(encoder: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Of every fourth image, by the five nearest of the others."""
    held_out = torch.arange(len(images)) % 4 == 3
    with torch.no_grad():
        features = F.normalize(encoder.eval()(images))
    encoder.train()
    knn = KNeighborsClassifier(5).fit(features[~held_out], labels[~held_out])
    return knn.score(features[held_out], labels[held_out])


def main(steps: int = 300) -> tuple[float, float]:
    torch.manual_seed(0)
    images, labels = digits()
    encoder = nn.Sequential(
        *(layer(1, 16, 1), layer(16, 32, 2), layer(32, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    projector = nn.Sequential(
        *(nn.Linear(64, DIM, bias=False), nn.BatchNorm1d(DIM), nn.ReLU()),
        *(nn.Linear(DIM, DIM, bias=False), nn.BatchNorm1d(DIM, affine=False)),
    )
    predictor = nn.Sequential(
        nn.Linear(DIM, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, DIM)
    )
    body = {"params": nn.Sequential(encoder, projector).parameters()}  # its rate falls to 0
    head = {"params": predictor.parameters(), "lr": 1.0}  # stays, so that it keeps up
    optimizer = torch.optim.SGD([body, head], lr=0.1, momentum=0.9, weight_decay=1e-4)
    global_crop = RandomResizedCrop((16, 16), scale=(0.7, 1.0))
    local_crop = RandomResizedCrop((12, 12), scale=(0.4, 0.8))
    criterion = LoGoLoss(repulsion_weight=0.01, pair_reduction="mean")

    def embed(batch: Tensor, crop: nn.Module, count: int) -> list[Tensor]:
        """z and h(z), [B, count, DIM], of count crops of each image, in one forward pass."""
        crops = crop(batch.repeat(count, 1, 1, 1))
        z = projector(encoder(crops + NOISE * torch.randn_like(crops)))
        return [rows.view(count, -1, DIM).transpose(0, 1) for rows in (z, predictor(z))]

    before = knn_accuracy(encoder, images, labels)
    unlabelled = images[torch.arange(len(images)) % 4 != 3]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
        batch = unlabelled[torch.randperm(len(unlabelled))[:BATCH]]
        z, h = embed(batch, global_crop, G)
        z_local, h_local = embed(batch, local_crop, L)
        # Global and local crops are drawn to the targets, constants; local ones repel each other.
        loss = criterion(h, h_local, targets=z, repulsion_features=z_local)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss.item():.3f}")
    after = knn_accuracy(encoder, images, labels)
    pixels = knn_accuracy(nn.Flatten(), images, labels)
    print(f"kNN accuracy: untrained {before:.3f}, trained {after:.3f}, raw pixels {pixels:.3f}")
    return before, after


if __name__ == "__main__":
    main()
