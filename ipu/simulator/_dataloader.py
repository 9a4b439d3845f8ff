"""The data loader under the name of the module that PopTorch keeps it in."""

from __future__ import annotations

from ipu.simulator.dataloader import AsynchronousDataAccessor, DataLoader

__all__ = ["AsynchronousDataAccessor", "DataLoader"]
