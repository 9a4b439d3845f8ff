"""Trains a classifier of digits as programs for PopTorch do: `train_digits.py FOLDER EPOCHS`; goes on if it can."""

from __future__ import annotations

import json
import os
import sys

import poptorch
import torch
from digits import Network, NetworkWithLoss, make_digits


def main(folder: str, epochs: int) -> None:
    options = poptorch.Options()
    options.deviceIterations(2)
    options.Training.gradientAccumulation(4)
    options.outputMode(poptorch.OutputMode.All)
    options.randomSeed(42)
    loader = poptorch.DataLoader(options, make_digits(160, seed=2), batch_size=4, shuffle=False, num_workers=0)

    model = NetworkWithLoss(Network())
    poptorch.BeginBlock(model.network.layer1, "B1", ipu_id=0)
    poptorch.BeginBlock(model.network.layer3, "B2", ipu_id=1)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.004, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    path, first = os.path.join(folder, "checkpoint.pt"), 0
    if os.path.exists(path):
        checkpoint = torch.load(path)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        first = checkpoint["epoch"]

    model.train()
    training_model = poptorch.trainingModel(model, options=options, optimizer=optimizer)
    losses = []
    for epoch in range(first, epochs):
        for images, labels in loader:
            predictions, loss = training_model(images, labels)
            assert predictions.shape == labels.shape
            losses += loss.tolist()
        scheduler.step()
        training_model.setOptimizer(optimizer)
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epoch": epoch + 1,
            },
            path,
        )
    training_model.detachFromDevice()

    model.eval()
    inference_options = poptorch.Options().deviceIterations(4)
    inference_model = poptorch.inferenceModel(model, inference_options)
    predictions = []
    for images, _ in poptorch.DataLoader(inference_options, make_digits(80, seed=3), batch_size=5):
        predictions += inference_model(images).argmax(dim=-1).tolist()
    with open(os.path.join(folder, "results.json"), "w") as file:
        json.dump({"losses": losses, "predictions": predictions, "module": poptorch.__name__}, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
