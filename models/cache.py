"""What decoding keeps of earlier positions, so that a new one costs one position's work.

Keys and values lie in a window: those of the text first, behind them those of the pixels that the next position looks
at, so that attention reads one piece of memory with nothing else in it. A window has one size throughout, and is made
once, at the first write, in the type that the layer computes in.

Legend: R rows of a batch, H heads, K head width, S positions of a sequence, T text positions with <bos>, I pixels, N
places of a window, D width, A channels that turn with a position.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import native
from models.patterns import Layout, Pattern
from models.rotary import rotate

ALIGNMENT = 8  # a window has a multiple of so many places: GPUs' fused attention asks for it


@dataclasses.dataclass(frozen=True, eq=False)
class Arrangement:
    """Where the keys that a pattern allows lie in a window, derived from the pattern.

    Attributes:
        places: for each position, where its own key goes.
        counts: for each position, how many keys it looks at: the first of the window.
        pixels: for each pixel, the pixels that it looks at, which are copied behind the text; None: the pattern needs
            no copies, since a position looks at what the one before it did and at itself, or at the text and itself.
    """

    places: List[int]
    counts: List[int]
    pixels: Optional[List[List[int]]]

    @property
    def size(self) -> int:
        """N."""
        return -(-max(self.counts) // ALIGNMENT) * ALIGNMENT


@functools.lru_cache(maxsize=256)
def arrange(pattern: Pattern) -> Arrangement:
    """The arrangement of a pattern's keys."""
    all_keys, text = pattern.keys(), list(range(pattern.layout.text_len))
    keys = [seen.tolist() for seen in all_keys]
    places: List[int] = []
    for position, seen in enumerate(keys):
        before = keys[position - 1] if position else []
        if seen == [*before, position]:
            places.append(len(before))
        elif seen == [*text, position]:
            places.append(len(text))
        else:
            pixels = [[key - len(text) for key in seen[len(text) :]] for seen in keys[len(text) :]]
            return Arrangement(list(range(len(keys))), [len(seen) for seen in keys], pixels)
    return Arrangement(places, [len(seen) for seen in keys], None)


class Place:
    """The position that a step computes.

    Args:
        tensor: its number, (1,), on the device.
        number: the same for slices; None: shapes have to be the same at every position, and `tensor`, which is that of
            a pixel then, alone says which one it is, so that a GPU can replay the step.
    """

    def __init__(self, tensor: Tensor, number: Optional[int] = None) -> None:
        self.tensor, self.number = tensor, number
        self._rows: Dict[int, Tensor] = {}

    def row_of(self, table: Tensor) -> Tensor:
        """What a table (S, ...) has for the position, (1, ...); looked up once a step, however many layers ask."""
        if id(table) not in self._rows:
            self._rows[id(table)] = table.index_select(0, self.tensor)
        return self._rows[id(table)]


class WindowTables:
    """An arrangement on a device; the windows of layers of one pattern share it.

    Args:
        pattern: what each position may look at.
        device, dtype: of the windows.
    """

    def __init__(self, pattern: Pattern, device: torch.device, dtype: torch.dtype) -> None:
        self.layout, self.arrangement, self.device, self.dtype = pattern.layout, arrange(pattern), device, dtype
        pixels = self.arrangement.pixels
        self.pixels = None if pixels is None else [torch.tensor(seen, device=device) for seen in pixels]

    @functools.cached_property
    def places(self) -> Tensor:
        """Where the key of each position goes, (S, 1)."""
        return torch.tensor(self.arrangement.places, device=self.device)[:, None]

    @functools.cached_property
    def copied(self) -> Tensor:
        """For each position the pixels that it looks at, the last one again and again where they are few: (S, n)."""
        assert self.pixels is not None, "a pattern that needs copies says of what"
        most = max(len(seen) for seen in self.pixels)
        rows = torch.stack([torch.cat((seen, seen[-1:].expand(most - len(seen)))) for seen in self.pixels])
        return F.pad(rows, (0, 0, self.layout.text_len, 0))

    @functools.cached_property
    def hidden(self) -> Tensor:
        """-inf at the places of the window that a position must not look at, else 0: (S, N)."""
        counts = torch.tensor(self.arrangement.counts, device=self.device)[:, None]
        beyond = torch.arange(self.arrangement.size, device=self.device) >= counts
        return torch.zeros(beyond.shape, device=self.device, dtype=self.dtype).masked_fill(beyond, float("-inf"))


class KeyWindow:
    """The keys and values of one layer, as far as later positions look at them.

    Args:
        tables: of the layer's pattern.
        rows, heads, width: R, H, K.
        angles: cosines and sines (S, A) of the angles that queries, keys and values turn by; None: they do not.
    """

    def __init__(
        self,
        tables: WindowTables,
        rows: int,
        heads: int,
        width: int,
        angles: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> None:
        self.tables, self.text_len, self.angles = tables, tables.layout.text_len, angles

        def room(places: int) -> Tensor:
            return torch.zeros(rows, 2, heads, places, width, device=tables.device, dtype=tables.dtype)

        self.window = room(tables.arrangement.size)
        # those of pixels that a position may choose from: copied into the window, but by the kernel, which reads them
        self.pixels = room(0 if tables.pixels is None else tables.layout.image_len)
        self._kernel: Optional[Callable[..., None]] = None
        if native.is_for(self.window):
            turning = angles[0].shape[1] if angles else 0
            sizes = rows, heads, self.window.shape[3], self.pixels.shape[3], width, turning
            self._kernel = native.prepare("attend", tables.dtype, self.window, self.pixels, *sizes)

    def fill(self, k: Tensor, v: Tensor) -> None:
        """Store keys and values (R, H, n, K) of the first n positions."""
        both = torch.stack((k, v), dim=1).to(self.window.dtype)
        if self.tables.pixels is not None:
            text, pixels = both[:, :, :, : self.text_len], both[:, :, :, self.text_len :]
            self.pixels[:, :, :, : pixels.shape[3]] = pixels
            both = text
        last = {place: position for position, place in enumerate(self.tables.arrangement.places[: both.shape[3]])}
        places, positions = (torch.tensor(list(each), device=k.device) for each in (last.keys(), last.values()))
        self.window.index_copy_(3, places, both.index_select(3, positions))

    def attend(self, qkv: Tensor, place: Place) -> Tensor:
        """Store a position's key and value, and attend from its query: qkv (R, 3, H, K), not turned yet, to (R, H, K).

        The kernel gives single precision.
        """
        angles = None if self.angles is None else tuple(map(place.row_of, self.angles))  # (1, A) each
        if self._kernel is not None and place.number is not None:
            out = torch.empty(qkv[:, 0].shape)
            self._kernel(*(angles or (None, None)), qkv.float().contiguous(), *self._seen_from(place.number), out)
            return out
        if angles is not None:
            qkv = rotate(qkv, *angles)
        look = self._attend_in_fixed_shape if place.number is None else self._attend_in_slices
        return look(qkv[:, 0, :, None], qkv[:, 1:], place)[:, :, 0]

    def _seen_from(self, position: int) -> Tuple[int, int, Optional[Tensor], int]:
        """Where a position's own lie, how much of the window it sees, and which pixels behind that, and how many."""
        pixel = position - self.text_len
        if self.tables.pixels is None or pixel < 0:
            return self.tables.arrangement.places[position], self.tables.arrangement.counts[position], None, 0
        chosen = self.tables.pixels[pixel]
        return pixel, self.text_len, chosen, len(chosen)

    def _attend_in_slices(self, q: Tensor, keys_values: Tensor, place: Place) -> Tensor:
        assert place.number is not None, "slices have a start"
        own, begun, chosen, count = self._seen_from(place.number)
        if chosen is None:
            self.window.select(3, own).copy_(keys_values)
        else:
            self.pixels.select(3, own).copy_(keys_values)
            self.window.narrow(3, begun, count).copy_(self.pixels.index_select(3, chosen))
        keys, values = self.window.narrow(3, 0, begun + count).unbind(1)
        return F.scaled_dot_product_attention(q, keys, values)

    def _attend_in_fixed_shape(self, q: Tensor, keys_values: Tensor, place: Place) -> Tensor:
        keys_values = keys_values[:, :, :, None]
        if self.tables.pixels is None:
            self.window.index_copy_(3, place.row_of(self.tables.places)[0], keys_values)
        else:
            self.pixels.index_copy_(3, place.tensor - self.text_len, keys_values)
            seen = self.pixels.index_select(3, place.row_of(self.tables.copied)[0])
            self.window.narrow(3, self.text_len, seen.shape[3]).copy_(seen)
        keys, values = self.window.unbind(1)
        hidden = place.row_of(self.tables.hidden)[None, None]  # (1, 1, 1, N)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=hidden)


class Neighbours:
    """What token shift looks back to: some channels of each earlier position, and zeros beyond the edges.

    Args:
        layout: where text and picture lie.
        rows, width: R, and the channels.
        device, dtype: of what is kept.
    """

    def __init__(self, layout: Layout, rows: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layout = layout
        self.kept = torch.zeros(rows, layout.sequence_len + 1, width, device=device, dtype=dtype)  # the last stay zeros
        self._above_and_left = torch.tensor([self._of(at) for at in range(layout.sequence_len)], device=device)

    def fill(self, x: Tensor) -> None:
        """Store the first channels of the first positions, (R, n, D)."""
        self.kept[:, : x.shape[1]] = x[..., : self.kept.shape[-1]]

    def store(self, x: Tensor, place: Place) -> None:
        """Store the first channels of one position, (R, D)."""
        self.kept.index_copy_(1, place.tensor, x[:, None, : self.kept.shape[-1]])

    def before(self, place: Place) -> Tensor:
        """The channels of the position before, (R, width)."""
        return self.kept.index_select(1, place.tensor - 1)[:, 0]

    def above_and_left(self, place: Place) -> Tuple[Tensor, Tensor]:
        """The channels of the pixel above a pixel and of the one to the left of it, (R, width) each."""
        above, left = self.kept.index_select(1, place.row_of(self._above_and_left)[0]).unbind(1)
        return above, left

    def _of(self, position: int) -> Tuple[int, int]:
        row, column = divmod(position - self.layout.text_len, self.layout.columns)
        nothing = self.layout.sequence_len
        return (position - self.layout.columns if row > 0 else nothing, position - 1 if column else nothing)


class LayerCache(NamedTuple):
    """All that one layer keeps; what token shift needs only where the layer shifts."""

    keys: KeyWindow
    attention_inputs: Optional[Neighbours] = None
    feed_forward_inputs: Optional[Neighbours] = None
