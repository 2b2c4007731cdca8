"""The shipped experiments, small: changes of a spec, and data sets in the forms that they read, made of integers."""

import gzip
from pathlib import Path
from typing import Any

CHARGPT: dict[str, Any] = {
    "config__experiment": {"name": "chargpt", "module": "chargpt", "command": []},
    "config__model": {"layers": 2, "heads": 4, "width": 64, "context": 32, "dropout": 0.1},
    "config__optim": {"lr": 0.003, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99},
    "config__data": {"text": "words", "test_windows": 8, "test_batch_size": 4},
    "config__training__steps": 3,
    "config__training__batch_size": 4,
    "config__schedule__warmup_steps": 1,
    "config__training__clip_norm": 1.0,
}
RESNET50: dict[str, Any] = {
    "config__experiment": {"name": "resnet50", "module": "resnet50", "command": []},
    "config__model": {"classes": 10, "zero_init_residual": True},
    "config__optim": {"kind": "adamw", "lr": 0.002, "momentum": 0.9, "weight_decay": 0.05},
    "config__data": {"image_size": 16, "shift": 2, "mirror": True, "test_images": 8, "test_batch_size": 4},
    "config__training__steps": 2,
    "config__training__batch_size": 4,
    "config__schedule__warmup_steps": 1,
}


def write_data(folder: Path) -> None:
    """Write the data sets of both."""
    (folder / "words").mkdir(parents=True)
    text = " ".join(f"{number * number % 997}" for number in range(2000))
    (folder / "words" / "words.txt").write_text(text)
    images = folder / "fashion-mnist"
    images.mkdir()
    for name, count in (("train", 64), ("t10k", 8)):
        pixels = bytes(pixel * pixel % 251 for pixel in range(count * 28 * 28))
        labels = bytes(image % 10 for image in range(count))
        _write_idx(images / f"{name}-images-idx3-ubyte.gz", (count, 28, 28), pixels)
        _write_idx(images / f"{name}-labels-idx1-ubyte.gz", (count,), labels)


def _write_idx(path: Path, sizes: tuple[int, ...], content: bytes) -> None:
    header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    path.write_bytes(gzip.compress(header + content))
