"""What an encoder has learnt: kNN, linear probe, and two monitors that show a collapse.

Features are [N, F], labels float [N, classes], one-hot (score: top-1 accuracy) or multi-hot (score:
mean average precision over the classes).
"""

import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from data import ImageData


@torch.no_grad()
def embed(
    network: nn.Module, data: ImageData, images: Tensor, device: torch.device, batch_size: int = 512
) -> Tensor:
    """network(images) in evaluation mode: uint8 [N, C, H, W] -> float32 [N, F] on the device."""
    training = network.training
    network.eval()
    features = [
        network(data.normalise(chunk.to(device))).float() for chunk in images.split(batch_size)
    ]
    network.train(training)
    return torch.cat(features)


def knn_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, k: int, temperature: float
) -> Tensor:
    """Weighted kNN (Wu et al., CVPR 2018): the k nearest training images by cosine vote with
    exp(cos / temperature) for each of their labels. [M, classes], rows of one-hot votes sum to 1.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    k = min(k, len(train))
    scores = []
    for chunk in test.split(1024):  # [1024, N] similarities at a time.
        similarity, index = (chunk @ train.T).topk(k, dim=1)
        weight = (similarity / temperature).softmax(dim=1)
        scores.append(torch.einsum("mk,mkc->mc", weight, train_labels[index]))
    return torch.cat(scores)


def linear_probe_scores(
    train: Tensor, labels: Tensor, test: Tensor, multi_label: bool, iterations: int = 50
) -> Tensor:
    """Logistic regression on standardised frozen features: test logits [M, classes].

    One-vs-rest for multi-hot labels, softmax for one-hot ones. The L2 weight is chosen on a fifth
    of the training set, for each kind of features on its own: raw pixels get their best chance too.
    """
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    held_out = torch.arange(len(train), device=train.device) % 5 == 4
    fit_x, fit_y, held_x, held_y = (
        train[~held_out],
        labels[~held_out],
        train[held_out],
        labels[held_out],
    )
    best_l2, best = 0.0, -1.0
    for l2 in (1e-3, 1e-2, 1e-1, 1.0):
        logits = _linear(held_x, _fit_logistic(fit_x, fit_y, l2, multi_label, iterations))
        score = scores_to_metric(logits, held_y, multi_label)
        if score > best:
            best_l2, best = l2, score
    return _linear(test, _fit_logistic(train, labels, best_l2, multi_label, iterations))


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Weight [F + 1, classes], the last row the bias."""
    return torch.addmm(weight[-1], x, weight[:-1])


def _fit_logistic(
    x: Tensor, labels: Tensor, l2: float, multi_label: bool, iterations: int
) -> Tensor:
    """Minimise the mean loss + l2/2 |W|^2 (the bias is free) by L-BFGS over the full batch."""
    weight = torch.zeros(x.shape[1] + 1, labels.shape[1], device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = _linear(x, weight)
        if multi_label:
            loss = (
                F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
            )
        else:
            loss = F.cross_entropy(logits, labels)
        loss = loss + l2 / 2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach()


def scores_to_metric(scores: Tensor, labels: Tensor, multi_label: bool) -> float:
    """MAP over the classes that occur (multi-label), or top-1 accuracy."""
    if not multi_label:
        return (scores.argmax(1) == labels.argmax(1)).float().mean().item()
    present = labels.any(dim=0)
    return float(
        average_precision_score(
            labels[:, present].cpu().numpy(), scores[:, present].cpu().numpy(), average="macro"
        )
    )


def knn_metric(data: ImageData, train: Tensor, test: Tensor, k: int, temperature: float) -> float:
    """Train [N, F], test [M, F]: features of data's training and test images."""
    scores = knn_scores(train, data.train_labels.to(train.device), test, k, temperature)
    return scores_to_metric(scores.cpu(), data.test_labels, data.multi_label)


def linear_metric(data: ImageData, train: Tensor, test: Tensor, label_share: float = 1.0) -> float:
    """With the labels of a share of the training images alone: always the same ones."""
    labels = data.train_labels.to(train.device)
    if label_share < 1:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        labelled = order[: max(1, round(label_share * len(train)))].to(train.device)
        train, labels = train[labelled], labels[labelled]
    scores = linear_probe_scores(train, labels, test, data.multi_label)
    return scores_to_metric(scores.cpu(), data.test_labels, data.multi_label)


def channel_std(z: Tensor) -> float:
    """Mean over channels of the std of z/|z|, times sqrt(D): 1 when directions are spread evenly
    over the sphere, 0 at a collapse to one direction (SimSiam, section 4.1). z [N, D].
    """
    unit = F.normalize(z.float(), dim=1)
    return (unit.std(dim=0).mean() * z.shape[1] ** 0.5).item()


def effective_rank(z: Tensor) -> float:
    """exp(entropy of the normalised singular values) of z/|z|, centred (Roy & Vetterli, 2007): how
    many directions carry variance, from 1 to min(N - 1, D), and 0 if nothing varies. z [N, D].
    """
    unit = F.normalize(z.float(), dim=1)
    singular = torch.linalg.svdvals(unit - unit.mean(dim=0))
    if singular.max() <= 1e-6 * len(z) ** 0.5:
        return 0.0
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().item()
