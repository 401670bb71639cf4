"""--encoder timm:NAME against a stub.

timm itself is not installed where these tests run: its torchvision does not fit a CPU build of
torch there. The stub has the one function that is called, with the documented arguments
(`timm.create_model(name, num_classes=0, in_chans=C)`); that timm's own models train is not shown.
"""

import sys
from types import SimpleNamespace

import pytest
from torch import nn

from encoder import build_encoder, export_encoder, load_encoder, probe_encoder
from errors import UserError


def create_model(model_name, pretrained=False, *, num_classes=1000, in_chans=3):
    if model_name != "tiny":
        raise RuntimeError(f"Unknown model ({model_name})")
    head = nn.Identity() if num_classes == 0 else nn.Linear(6, num_classes)
    return nn.Sequential(nn.Conv2d(in_chans, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))


@pytest.mark.usefixtures("stub")
def test_a_model_comes_without_its_classifier_and_for_the_images_channels(tmp_path):
    for channels in (1, 3):
        encoder = build_encoder("timm:tiny", channels)
        assert probe_encoder(encoder, "timm:tiny", channels, (16, 8)) == 6
    mean = std = encoder[0].weight.detach().new_ones(3)
    export_encoder(encoder, "timm:tiny", mean, std, tmp_path / "encoder.safetensors")
    again, _, _ = load_encoder(tmp_path / "encoder.safetensors")
    assert again[0].weight.equal(encoder[0].weight)


@pytest.mark.usefixtures("stub")
def test_an_unknown_model_is_one_line():
    with pytest.raises(UserError, match=r"timm:none: cannot be built .*Unknown model \(none\)"):
        build_encoder("timm:none", 1)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"timm is missing .*pip install \"logo_kernels\[timm\]\""):
        build_encoder("timm:resnet18", 1)


def test_a_timm_that_cannot_be_imported_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(UserError, match=r"cannot be imported .*operator nms does not exist"):
        build_encoder("timm:resnet18", 1)
