"""Drawing on IPUs: programs there have fixed shapes, so each token takes a pass over the whole sequence."""

from __future__ import annotations

from typing import Callable, Tuple

import torch
from torch import Tensor, nn

from models.dalle import Dalle

Logits = Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]]


class DeviceDalle(nn.Module):
    """A transformer whose logits a device computes; for `models.decoding`.

    Args:
        dalle: on the host, which knows its vocabularies and layout.
        device_logits: from texts (rows, T), padding numbered, and codes (rows, I) to the two parts' logits.
        rows: that each call takes.
    """

    keeps_caches = False

    def __init__(self, dalle: Dalle, device_logits: Logits, rows: int) -> None:
        super().__init__()
        self.text_seq_len, self.layout = dalle.text_seq_len, dalle.layout
        self.text_vocab_size, self.image_vocab_size = dalle.text_vocab_size, dalle.image_vocab_size
        self.number_padding = dalle.number_padding
        self.device_logits, self.rows = device_logits, rows

    def logits(self, text: Tensor, image_tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """See `Dalle.logits`; any number of rows."""
        texts, images = [], []
        for start in range(0, len(text), self.rows):
            part = [tensor[start : start + self.rows] for tensor in (text, image_tokens)]
            text_logits, image_logits = self.device_logits(*(fill_rows(tensor, self.rows).int() for tensor in part))
            texts.append(text_logits[: len(part[0])])
            images.append(image_logits[: len(part[0])])
        return torch.cat(texts), torch.cat(images)


def fill_rows(tensor: Tensor, rows: int) -> Tensor:
    """Repeat the last row up to a number of rows: shapes on the device are fixed."""
    missing = rows - len(tensor)
    return torch.cat((tensor, tensor[-1:].expand(missing, *tensor.shape[1:]))) if missing else tensor
