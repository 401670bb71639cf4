"""Encoders give [N, F]; the heads are SimSiam's; an exported encoder comes back whole."""

import sys

import pytest
import torch
from torch import nn

from encoder import ResNet, build_encoder, export_encoder, feature_dim, load_encoder
from errors import UserError
from model import SimSiam


@pytest.mark.parametrize(
    ("name", "channels", "features"), [("small", 1, None), ("small", 3, None), ("resnet18", 3, 512)]
)
@pytest.mark.parametrize("size", [16, 32, 48])
def test_encoders_accept_every_crop_size(name, channels, features, size):
    encoder = build_encoder(name, channels)
    found = feature_dim(encoder, channels, size)
    assert encoder(torch.rand(2, channels, size, size)).shape == (2, found)
    assert features is None or found == features


def test_resnet18_is_the_cifar_one():
    """11.17 M parameters without a classifier, and no stride before the second stage."""
    encoder = build_encoder("resnet18", 3)
    assert sum(p.numel() for p in encoder.parameters()) == 11_168_832
    assert encoder.stem(torch.rand(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert encoder.stages(encoder.stem(torch.rand(1, 3, 32, 32))).shape == (1, 512, 4, 4)


def test_finding_the_feature_dim_changes_nothing():
    encoder = build_encoder("small", 1)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    feature_dim(encoder, 1, 32)
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_encoder_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def tiny():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())\n"
        "def unpooled():\n    return nn.Conv2d(1, 4, 3)\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert feature_dim(build_encoder("my_nets:tiny", 1), 1, 32) == 4
    with pytest.raises(UserError, match="pool and flatten"):
        feature_dim(build_encoder("my_nets:unpooled", 1), 1, 32)
    with pytest.raises(UserError, match="gave a int"):
        build_encoder("my_nets:number", 1)
    for missing in ("my_nets:absent", "no_such_module:f"):
        with pytest.raises(UserError, match="cannot be imported"):
            build_encoder(missing, 1)


def test_unknown_encoder_is_refused():
    with pytest.raises(UserError, match="got 'resnet19'"):
        build_encoder("resnet19", 1)


def test_simsiam_heads_as_published():
    network = SimSiam(ResNet(1, (8, 16), 1), 16, dim=32, bottleneck=8)
    norms = [m for m in network.projector if isinstance(m, nn.BatchNorm1d)]
    assert [n.affine for n in norms] == [True, True, False]
    assert isinstance(network.projector[-1], nn.BatchNorm1d)
    linears = [m for m in network.predictor if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(32, 8), (8, 32)]
    assert isinstance(network.predictor[-1], nn.Linear)
    z, h = network(torch.rand(6, 1, 16, 16))
    assert z.shape == h.shape == (6, 32)
    # The last batch norm leaves every channel of z with mean 0 and variance 1 over the batch.
    assert z.mean(0).abs().max() < 1e-5
    assert (z.var(0, correction=0) - 1).abs().max() < 1e-2


def test_export_round_trip(tmp_path):
    encoder = build_encoder("small", 3)
    encoder(torch.rand(8, 3, 32, 32))  # so that batch norm has something to remember
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    export_encoder(encoder, "small", mean, std, tmp_path / "e.safetensors")
    loaded, loaded_mean, loaded_std = load_encoder(tmp_path / "e.safetensors")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded(images), encoder.eval()(images))
    assert torch.equal(loaded_mean, mean)
    assert torch.equal(loaded_std, std)
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]
