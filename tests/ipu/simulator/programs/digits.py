"""What the programs of this folder share: made-up digits and a small network, in plain PyTorch."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn
from torch.utils.data import TensorDataset

SIDE, CLASSES = 12, 10


def make_digits(count: int, seed: int) -> TensorDataset:
    """Noisy copies of one picture for each class."""
    pictures = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return TensorDataset(pictures[labels] + torch.randn(count, 1, SIDE, SIDE, generator=generator), labels)


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels_out)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.pool(self.norm(self.conv(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = Block(1, 8)
        self.layer2 = Block(8, 16)
        self.layer3 = nn.Linear(16 * (SIDE // 4) ** 2, 32)
        self.layer4 = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(x)).flatten(1)
        return self.layer4(torch.relu(self.layer3(x)))


class NetworkWithLoss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: torch.Tensor, labels: Optional[torch.Tensor] = None) -> Any:
        logits = self.network(x)
        if labels is None:
            return logits
        return logits.argmax(dim=-1), self.loss(logits, labels)
