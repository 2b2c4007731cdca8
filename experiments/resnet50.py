"""ResNet-50 on Fashion-MNIST: the network of the field's baselines, on images that a laptop can train on.

The parameters have torchvision's names, shapes and order, so published weights load and trained ones are read anywhere.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runner.inside.seeding import Draws

# Mean and standard deviation of the 60,000 training images, in grey levels.
_MEAN, _DEVIATION = 72.94, 90.02


class Images(NamedTuple):
    """Fashion-MNIST: grey images (count, 28, 28) as bytes, and labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(config: Mapping[str, Mapping[str, object]], folder: Path) -> Images:
    """Read the four IDX files of Fashion-MNIST."""
    del config
    files = folder / "fashion-mnist"
    return Images(
        train=_read_idx(files / "train-images-idx3-ubyte.gz"),
        train_labels=_read_idx(files / "train-labels-idx1-ubyte.gz").long(),
        test=_read_idx(files / "t10k-images-idx3-ubyte.gz"),
        test_labels=_read_idx(files / "t10k-labels-idx1-ubyte.gz").long(),
    )


def _read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes: two zeros, type, rank, the sizes (big-endian), the bytes."""
    with gzip.open(path) as file:
        content = bytearray(file.read())
    sizes = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3])]
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


class Convolution(nn.Conv2d):
    """A convolution that starts as He et al. start it, without a bias."""

    def reset_parameters(self) -> None:
        """Draw the kernel."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the stride is the 3x3's ("v1.5")."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = Convolution(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Convolution(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Convolution(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(Convolution(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, 4 width, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(y + shortcut, inplace=True)


class ResNet50(nn.Module):
    """(batch, in_channels, h, w) -> (batch, classes)."""

    def __init__(self, classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(channels: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    later = [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(channels, width, stride), *later)


def count(data: Images) -> int:
    """Return the number of training images."""
    return len(data.train)


def model(config: Mapping[str, Any], data: Images) -> ResNet50:
    """Return ResNet-50 for grey images; with zero_init_residual each block is the identity at first."""
    del data
    network = ResNet50(classes=config["model"]["classes"], in_channels=1)
    if config["model"]["zero_init_residual"]:
        for block in network.modules():
            if isinstance(block, Bottleneck):
                nn.init.zeros_(block.bn3.weight)
    # oneDNN and cuDNN both convolve in this order; in the other they would reorder every tensor.
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def optimizer(config: Mapping[str, Any], model: ResNet50) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, which learns more in few steps. Only kernels decay."""
    optim = config["optim"]
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": optim["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    if optim["kind"] == "sgd":
        return torch.optim.SGD(groups, lr=optim["lr"], momentum=optim["momentum"], nesterov=True)
    # Fused, because the other forms round square roots as the CPU's vendor likes.
    return torch.optim.AdamW(groups, lr=optim["lr"], betas=(optim["momentum"], 0.999), fused=True)


def batch(config: Mapping[str, Any], data: Images, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the drawn images and labels; each image is shifted by up to `shift` pixels and mirrored by a coin."""
    shift = config["data"]["shift"]
    images = data.train[draws.ids]
    if shift:
        images = _crop(functional.pad(images, (shift,) * 4), draws, 2 * shift + 1)
    if config["data"]["mirror"]:
        images = torch.where(draws.integers("mirror", 2).bool()[:, None, None], images.flip(2), images)
    return _normalised(config, images), data.train_labels[draws.ids]


def _crop(padded: Tensor, draws: Draws, places: int) -> Tensor:
    """Cut each padded image back to its size at a place drawn for it."""
    size = padded.shape[1] - places + 1
    pixels = torch.arange(size)
    rows = draws.integers("row", places)[:, None] + pixels
    columns = draws.integers("column", places)[:, None] + pixels
    return padded[torch.arange(len(padded))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _normalised(config: Mapping[str, Any], images: Tensor) -> Tensor:
    """Return bytes (batch, h, w) as numbers (batch, 1, size, size) of mean 0 and deviation 1."""
    size = config["data"]["image_size"]
    grey = ((images.float() - _MEAN) / _DEVIATION)[:, None]
    if size != images.shape[1]:
        grey = functional.adaptive_avg_pool2d(grey, size)
    return grey.contiguous(memory_format=torch.channels_last)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy of a batch."""
    images, labels = batch
    return functional.cross_entropy(model(images), labels)


def test_batches(config: Mapping[str, Any], data: Images) -> list[tuple[Tensor, Tensor]]:
    """Return the 10,000 test images in batches that fit a laptop's caches."""
    count, size = config["data"]["test_images"], config["data"]["test_batch_size"]
    firsts = range(0, min(count, len(data.test)), size)
    return [(_normalised(config, data.test[at : at + size]), data.test_labels[at : at + size]) for at in firsts]


def score(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the number of images, of right answers, and the sum of their losses."""
    images, labels = batch
    logits = model(images).float()
    right = int((logits.argmax(1) == labels).sum())
    losses = functional.cross_entropy(logits, labels, reduction="sum")
    return {"samples": len(labels), "accuracy": right, "loss": losses.item()}
