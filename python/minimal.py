"""SimSiam-LoGo on scikit-learn's handwritten digits, on one page.

    python python/minimal.py

An encoder learns from crops, without labels; half a minute on two cores. It prints the accuracy of
kNN on what the encoder makes of digits that it has not seen, before and after.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomResizedCrop
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from logo_kernels import LoGoLoss

G, L, DIM, BATCH = 2, 4, 128, 256  # global and local crops of an image, embedding, images in a step


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images [N, 1, 16, 16] in [0, 1], enlarged from 8 x 8, and which digit each shows."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    return F.interpolate(images, (16, 16), mode="bilinear"), torch.from_numpy(data.target)


def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def knn_accuracy(encoder: nn.Module, images: Tensor, labels: Tensor, held_out: Tensor) -> float:
    with torch.no_grad():
        features = F.normalize(encoder.eval()(images)).numpy()
    encoder.train()
    knn = KNeighborsClassifier(5).fit(features[~held_out], labels[~held_out])
    return knn.score(features[held_out], labels[held_out])


def main(steps: int = 300) -> tuple[float, float]:
    torch.manual_seed(0)
    images, labels = digits()
    held_out = torch.arange(len(images)) % 4 == 3

    encoder = nn.Sequential(
        *(layer(1, 32, 1), layer(32, 64, 2), layer(64, 128, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    projector = nn.Sequential(
        *(nn.Linear(128, DIM, bias=False), nn.BatchNorm1d(DIM), nn.ReLU()),
        *(nn.Linear(DIM, DIM, bias=False), nn.BatchNorm1d(DIM, affine=False)),
    )
    predictor = nn.Sequential(
        *(nn.Linear(DIM, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, DIM)),
    )
    network = nn.ModuleList([encoder, projector, predictor])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    global_crop = RandomResizedCrop((16, 16), scale=(0.5, 1.0))
    local_crop = RandomResizedCrop((8, 8), scale=(0.2, 0.5))
    criterion = LoGoLoss(repulsion_weight=0.01, pair_reduction="mean")

    def embed(batch: Tensor, crop: Callable[[Tensor], Tensor], count: int) -> list[Tensor]:
        """z and h(z), [B, count, DIM], of count crops of each image, in one forward pass."""
        z = projector(encoder(crop(batch.repeat(count, 1, 1, 1))))
        return [rows.view(count, -1, DIM).transpose(0, 1) for rows in (z, predictor(z))]

    before = knn_accuracy(encoder, images, labels, held_out)
    unlabelled = images[~held_out]
    for step in range(steps):
        batch = unlabelled[torch.randperm(len(unlabelled))[:BATCH]]
        z, h = embed(batch, global_crop, G)
        z_local, h_local = embed(batch, local_crop, L)
        # Global and local crops are drawn to the targets, constants; local ones repel each other.
        loss = criterion(h, h_local, targets=z, repulsion_features=z_local)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss.item():.3f}")
    after = knn_accuracy(encoder, images, labels, held_out)
    print(f"kNN accuracy on held-out digits: untrained {before:.3f}, trained {after:.3f}")
    return before, after


if __name__ == "__main__":
    main()
