"""Classifies digits on two replicas, reading ahead, and once more from a saved executable: `infer_digits.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys

import poptorch
import torch
from digits import Network, make_digits


class Shown(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)
        return logits + 0 * poptorch.ipu_print_tensor(logits.mean(), "mean of the logits")


def main(folder: str) -> None:
    options = poptorch.Options().deviceIterations(3).replicationFactor(2)
    loader = poptorch.DataLoader(
        options,
        make_digits(72, seed=4),
        batch_size=4,
        num_workers=1,
        mode=poptorch.DataLoaderMode.Async,
        async_options={"early_preload": True},
    )
    torch.manual_seed(0)
    network = Network().eval()
    model = poptorch.inferenceModel(Shown(network), options)
    logits = torch.cat([model(images).clone() for images, _ in loader])

    half_options = poptorch.Options().deviceIterations(3).replicationFactor(2)
    half = poptorch.inferenceModel(Network().eval().half(), half_options)
    half.model.load_state_dict(network.state_dict())
    half_logits = torch.cat([half(images.half()) for images, _ in loader])

    path = os.path.join(folder, "executables", "digits.poptorch")
    model.save(path)
    model.destroy()
    loaded = poptorch.load(path)
    again = torch.cat([loaded(images) for images, _ in loader])
    loader.terminate()
    assert loaded.isCompiled()
    torch.save({"logits": logits, "again": again, "half": half_logits}, os.path.join(folder, "logits.pt"))
    with open(os.path.join(folder, "results.json"), "w") as file:
        json.dump({"counters": len(loaded.getPerfCounters()["input"][0])}, file)


if __name__ == "__main__":
    main(sys.argv[1])
