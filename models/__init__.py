"""The mathematics: image tokenizers and the text-to-image transformer, knowing no device, no rank and no file."""
