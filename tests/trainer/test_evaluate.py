"""Scores against values worked out by hand or by scikit-learn; monitors on known distributions."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import evaluate
from data import load_scenes


def test_knn_by_hand():
    """Two neighbours at cosines 1 and 0.6, temperature 0.2: weights e^5 : e^3."""
    train = torch.tensor([[2.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    scores = evaluate.knn_scores(train, labels, torch.tensor([[5.0, 0.0]]), k=2, temperature=0.2)
    first = math.exp(5) / (math.exp(5) + math.exp(3))
    torch.testing.assert_close(scores, torch.tensor([[first, 1 - first, 1.0]]))


def test_knn_agrees_with_scikit_learn():
    """Cosine neighbours, single labels, votes of equal weight (a very high temperature)."""
    train, test = torch.randn(60, 8), torch.randn(1500, 8)  # more than one chunk of test images
    y = torch.randint(0, 4, (60,))
    scores = evaluate.knn_scores(train, F.one_hot(y).float(), test, k=7, temperature=1e6)
    peer = KNeighborsClassifier(7, metric="cosine").fit(train.numpy(), y.numpy())
    torch.testing.assert_close(
        scores.double(), torch.from_numpy(peer.predict_proba(test.numpy())), atol=1e-5, rtol=0
    )


def test_knn_with_fewer_images_than_neighbours():
    train, labels = torch.eye(3), torch.eye(3)
    scores = evaluate.knn_scores(train, labels, torch.eye(3), k=200, temperature=0.1)
    assert scores.argmax(1).tolist() == [0, 1, 2]


def test_mean_average_precision_by_hand():
    """Class 0: hits at ranks 1 and 3 -> (1 + 2/3) / 2. Class 1: one hit at rank 2 -> 1/2.
    Class 2 never occurs, so it has no precision and is left out.
    """
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.8, 0.9, 0.2], [0.7, 0.1, 0.3], [0.6, 0.2, 0.4]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    got = evaluate.scores_to_metric(scores, labels, multi_label=True)
    assert got == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_accuracy_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert evaluate.scores_to_metric(scores, labels, multi_label=False) == pytest.approx(2 / 3)


@pytest.mark.parametrize("multi_label", [True, False], ids=["one-vs-rest", "softmax"])
def test_linear_fit_is_scikit_learns(multi_label):
    """The same objective: mean loss + l2/2 |W|^2 is C = 1/(n l2) there."""
    n, l2 = 200, 1e-2
    x = torch.randn(n, 6)
    truth = x @ torch.randn(6, 3) + torch.randn(n, 3)
    weight = None
    if multi_label:
        labels = (truth > 0).float()
        weight = evaluate._fit_logistic(x, labels, l2, True, iterations=300)
        for c in range(3):
            peer = LogisticRegression(C=1 / (n * l2), tol=1e-8).fit(x, labels[:, c])
            torch.testing.assert_close(
                weight[:-1, c], torch.tensor(peer.coef_[0]).float(), atol=2e-3, rtol=0
            )
            assert weight[-1, c].item() == pytest.approx(peer.intercept_[0], abs=2e-3)
    else:
        y = truth.argmax(1)
        weight = evaluate._fit_logistic(x, F.one_hot(y).float(), l2, False, iterations=300)
        peer = LogisticRegression(C=1 / (n * l2), tol=1e-8, max_iter=1000).fit(x, y)
        ours = (x @ weight[:-1] + weight[-1]).softmax(1)
        torch.testing.assert_close(
            ours.double(), torch.from_numpy(peer.predict_proba(x.numpy())), atol=2e-3, rtol=0
        )


def test_linear_probe_reads_what_is_there_and_nothing_else():
    x, test = torch.randn(400, 20), torch.randn(300, 20)
    direction = torch.randn(20, 4)
    labels, test_labels = (x @ direction > 0).float(), (test @ direction > 0).float()
    # The scale and the offset of features must not matter.
    scores = evaluate.linear_probe_scores(x * 50 + 7, labels, test * 50 + 7, multi_label=True)
    assert average_precision_score(test_labels, scores) > 0.97
    shuffled = labels[torch.randperm(400)]
    scores = evaluate.linear_probe_scores(x, shuffled, test, multi_label=True)
    assert average_precision_score(test_labels, scores) < 0.62  # chance is a half


def test_a_constant_feature_does_no_harm():
    x = torch.randn(50, 3)
    x[:, 1] = 4.0
    scores = evaluate.linear_probe_scores(x, F.one_hot((x[:, 0] > 0).long()).float(), x, False)
    assert scores.isfinite().all()


def test_monitors_on_isotropic_embeddings():
    z = torch.randn(4000, 64)
    assert evaluate.channel_std(z) == pytest.approx(1, abs=0.02)
    assert evaluate.effective_rank(z) == pytest.approx(64, rel=0.03)


def test_monitors_on_collapsed_embeddings():
    one_direction = torch.randn(1, 64) * torch.rand(500, 1)
    assert evaluate.channel_std(one_direction) < 1e-3
    assert evaluate.effective_rank(one_direction) < 1.5
    assert evaluate.effective_rank(torch.ones(500, 64)) == 0
    assert evaluate.channel_std(torch.zeros(10, 4)) == 0


def test_effective_rank_sees_a_dimensional_collapse_that_the_std_misses():
    z = torch.randn(2000, 5) @ torch.randn(5, 64)
    assert evaluate.channel_std(z) > 0.8
    assert 4 < evaluate.effective_rank(z) < 6


def test_monitors_ignore_the_length():
    z = torch.randn(300, 16)
    scaled = z * (0.1 + torch.rand(300, 1)) * 1e3
    assert evaluate.channel_std(scaled) == pytest.approx(evaluate.channel_std(z), rel=1e-4)
    assert evaluate.effective_rank(scaled) == pytest.approx(evaluate.effective_rank(z), rel=1e-3)


def test_embed_is_in_evaluation_mode_and_gives_the_mode_back():
    scenes = load_scenes(10, 2, seed=0)
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    network(torch.randn(8, 1, 48, 48))
    before = network[2].running_mean.clone()
    device = torch.device("cpu")
    whole = evaluate.embed(network, scenes, scenes.train_images, device)
    parts = evaluate.embed(network, scenes, scenes.train_images, device, batch_size=3)
    torch.testing.assert_close(whole, parts)  # no dropout, no batch statistics
    assert torch.equal(before, network[2].running_mean)
    assert network.training
    assert not whole.requires_grad
