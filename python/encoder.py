"""Encoders for small images, a user's own by name, and their export."""

import contextlib
import importlib
import json
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from checkpoint import write_atomically
from errors import UserError, out_of_memory, reason, writing


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. [N, C, H, W] -> [N, width, H/s, W/s], s = stride."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet with the CIFAR stem: one 3x3 convolution, no max pooling. [N, C, H, W] -> [N, F].

    Global average pooling makes it accept every crop size, which multi-crop training needs.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...], blocks: int, stem_stride: int = 1
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(inputs, width, stride))
                inputs = width
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).mean(dim=(2, 3))


def small_resnet(channels: int) -> ResNet:
    """Seven convolutions in a row, 0.2 M parameters; a stem of stride 2 keeps a CPU step short."""
    return ResNet(channels, widths=(24, 48, 96), blocks=1, stem_stride=2)


def resnet18(channels: int) -> ResNet:
    """ResNet-18 in CIFAR style, the encoder of the paper's CIFAR-10 experiments (F = 512)."""
    return ResNet(channels, widths=(64, 128, 256, 512), blocks=2)


def build_encoder(name: str, channels: int) -> nn.Module:
    """Build "small", "resnet18", "timm:NAME", or "package.module:factory": factory() gives any
    nn.Module.

    The module maps [N, C, H, W] to [N, F] and must accept the global and the local crop size.
    """
    if name == "small":
        return small_resnet(channels)
    if name == "resnet18":
        return resnet18(channels)
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"--encoder: got {name!r}; want 'small', 'resnet18', 'timm:NAME' or "
            "'package.module:factory'"
        )
    if module_name == "timm":
        return timm_model(name, attribute, channels)
    # `python python/train.py` puts python/ on sys.path but not the folder it was called from.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    with blamed_on(name, "cannot be imported"):
        factory = getattr(importlib.import_module(module_name), attribute)
    with blamed_on(name, "cannot be built by a call without arguments"):
        encoder = factory()
    if not isinstance(encoder, nn.Module):
        raise UserError(f"--encoder {name}: gave a {type(encoder).__name__}; want an nn.Module")
    return encoder


def timm_model(name: str, model: str, channels: int) -> nn.Module:
    """A model of timm without its classifier, with random weights: [N, C, H, W] -> [N, F]."""
    try:
        timm = importlib.import_module("timm")
    except Exception as error:  # One that does not fit torch raises nearly anything.
        raise UserError(
            f"--encoder {name}: timm is missing or cannot be imported ({reason(error)}). "
            'pip install "logo_kernels[timm]" brings it; it needs a torchvision that fits torch.'
        ) from error
    with blamed_on(name, "cannot be built by timm.create_model"):
        return timm.create_model(model, num_classes=0, in_chans=channels)


@contextlib.contextmanager
def blamed_on(name: str, what: str) -> Iterator[None]:
    """An exception out of a user's encoder becomes one line with the place where it was raised.

    Those that come with the trainer are no user's: what they raise is a bug of ours.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        if ":" not in name or out_of_memory(error):
            raise
        raise UserError(f"--encoder {name}: {what} ({reason(error)}{place_of(error)})") from error


def place_of(error: BaseException) -> str:
    """File and line in the user's code, the innermost: neither a library's nor ours."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    others = (str(Path(__file__).parent), *libraries, "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(others):
            return f"; {frame.filename}, line {frame.lineno}"
    return ""


def probe_encoder(encoder: nn.Module, name: str, channels: int, sizes: Iterable[int]) -> int:
    """F of an encoder [N, C, size, size] -> [N, F], the same for every size of a crop.

    By forward passes that change nothing.
    """
    found: dict[int, int] = {}
    for size in sizes:
        with blamed_on(name, f"fails on an input of [2, {channels}, {size}, {size}]"):
            found[size] = feature_dim(encoder, channels, size)
    if len(set(found.values())) > 1:
        raise UserError(
            f"--encoder {name}: crops of {' and '.join(map(str, found))} pixels gave "
            f"{' and '.join(map(str, found.values()))} features; want as many for each: pool"
        )
    return next(iter(found.values()))


def feature_dim(encoder: nn.Module, channels: int, size: int) -> int:
    """F of an encoder [N, C, size, size] -> [N, F], by a forward pass that changes nothing."""
    training = encoder.training
    encoder.eval()  # Batch norm's running statistics must not see the probe.
    try:
        with torch.no_grad():
            features = encoder(torch.zeros(2, channels, size, size))
    finally:
        encoder.train(training)
    shape = f"--encoder: an input of [2, {channels}, {size}, {size}] gave "
    if not isinstance(features, Tensor):
        raise UserError(f"{shape}a {type(features).__name__}; want a tensor [2, F]")
    if features.ndim != 2 or features.shape[0] != 2 or features.shape[1] == 0:
        raise UserError(
            f"{shape}{list(features.shape)}; want [2, F]: pool and flatten in the module"
        )
    if features.dtype != torch.float32 or features.device.type != "cpu":
        raise UserError(f"{shape}{features.dtype} on {features.device}; want float32 on cpu")
    return features.shape[1]


def export_encoder(encoder: nn.Module, name: str, mean: Tensor, std: Tensor, path: Path) -> None:
    """Write the encoder's weights, with what is needed to use them again as metadata."""
    metadata = {
        "encoder": name,
        "channels": str(len(mean)),
        "mean": json.dumps(mean.tolist()),
        "std": json.dumps(std.tolist()),
    }
    with blamed_on(name, "has a state that safetensors does not hold"):
        tensors = {
            # Copies: what two layers share may stand twice in the file.
            key: value.detach().cpu().contiguous().clone()
            for key, value in encoder.state_dict().items()
        }
        content = save(tensors, metadata)
    with writing(path):
        write_atomically(path, lambda file: file.write(content))


def load_encoder(path: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The encoder in evaluation mode, and the mean [C] and std [C] of the images it wants."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        name, channels = metadata["encoder"], int(metadata["channels"])
        mean, std = (torch.tensor(json.loads(metadata[key])) for key in ("mean", "std"))
    except Exception as error:  # A damaged file raises nearly anything.
        raise UserError(f"{path}: not an exported encoder ({reason(error)})") from error
    encoder = build_encoder(name, channels)
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit {name} ({reason(error)})") from error
    return encoder.eval(), mean, std
