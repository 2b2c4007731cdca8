"""A small character-level transformer: learns to write in the manner of one text file.

B: batch, T: characters of context, C: width, V: characters in the text's alphabet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runner.inside.seeding import Draws

_TEST_SHARE = 20


class Text(NamedTuple):
    """A text as numbers of its alphabet's characters; the last twentieth is for the test."""

    train: Tensor
    test: Tensor
    alphabet: str
    context: int


def load(config: Mapping[str, Any], folder: Path) -> Text:
    """Read the one .txt file of the data set that the config names."""
    (path,) = sorted((folder / config["data"]["text"]).glob("*.txt"))
    content = path.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(content)))
    number = {character: index for index, character in enumerate(alphabet)}
    numbers = torch.tensor([number[character] for character in content], dtype=torch.uint8)
    split = len(numbers) - len(numbers) // _TEST_SHARE
    return Text(numbers[:split], numbers[split:], alphabet, config["model"]["context"])


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each beside a residual path. (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:  # noqa: N803, the suffix is the shape
        """Mix each position with those before it, then with itself."""
        x_BTC = x_BTC + self.dropout(self._attend(self.norm1(x_BTC)))  # noqa: N806
        hidden = functional.gelu(self.widen(self.norm2(x_BTC)))
        return x_BTC + self.dropout(self.narrow(hidden))  # type: ignore[no-any-return]

    def _attend(self, x_BTC: Tensor) -> Tensor:  # noqa: N803
        batch, length, width = x_BTC.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(x_BTC).split(width, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class CharGPT(nn.Module):
    """Predicts each next character. (B, T) int64 -> (B, T, V)."""

    def __init__(self, characters: int, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, dropout = sizes["width"], sizes["dropout"]
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Embedding(sizes["context"], width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, sizes["heads"], dropout) for _ in range(sizes["layers"])))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)

    def forward(self, text_BT: Tensor) -> Tensor:  # noqa: N803
        """Return the logits of the character that follows each position."""
        places = torch.arange(text_BT.shape[1], device=text_BT.device)
        x_BTC = self.dropout(self.characters(text_BT) + self.places(places))  # noqa: N806
        return self.head(self.norm(self.blocks(x_BTC)))  # type: ignore[no-any-return]


def count(data: Text) -> int:
    """Return the number of training windows that fit side by side."""
    return (len(data.train) - 1) // data.context - 1


def model(config: Mapping[str, Any], data: Text) -> CharGPT:
    """Return the network, its weights small enough that the first predictions are near even."""
    network = CharGPT(len(data.alphabet), config["model"])
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    return network


def optimizer(config: Mapping[str, Any], model: CharGPT) -> torch.optim.Optimizer:
    """Return AdamW; fused, because the other forms round square roots as the CPU's vendor likes."""
    optim = config["optim"]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optim["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim["lr"], betas=(optim["beta1"], optim["beta2"]), fused=True)


def batch(config: Mapping[str, Any], data: Text, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the drawn windows and, for each character, the next; each epoch starts windows at other places."""
    context = config["model"]["context"]
    starts = draws.ids * context + draws.integers("start", context)
    return _windows(data.train, starts, context)


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy of the next character."""
    text, following = batch
    return functional.cross_entropy(model(text).flatten(0, 1), following.flatten())


def test_batches(config: Mapping[str, Any], data: Text) -> list[tuple[Tensor, Tensor]]:
    """Return windows of the test text, side by side."""
    context, size = config["model"]["context"], config["data"]["test_batch_size"]
    windows = min(config["data"]["test_windows"], (len(data.test) - 1) // context)
    starts = torch.arange(windows) * context
    return [_windows(data.test, starts[at : at + size], context) for at in range(0, windows, size)]


def score(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the number of characters, of right guesses, and the sum of their losses."""
    text, following = batch
    logits = model(text).float()
    right = int((logits.argmax(2) == following).sum())
    losses = functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
    return {"samples": following.numel(), "accuracy": right, "loss": losses.item()}
