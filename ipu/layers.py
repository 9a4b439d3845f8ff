"""The model as IPUs run it: blocks, serialised layers, recomputation and half precision; and the way back.

The plain model stays as it is. `IpuModel` holds a copy of it that is cut into blocks; `plain_state` and `ipu_state`
translate its weights, or anything else that each weight has, from and to the plain model's names.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ipu import PopTorch
from ipu.fused import FusedOptions, fuse
from models.dalle import WHOLE_VOCABULARY, Dalle, Projection
from models.image_tokenizer import TextToImage, as_unit_range
from options import OptionError


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """How a model is changed for IPUs.

    Args:
        embedding: the block of the embeddings.
        image_tokenizer: the block of the image tokenizer; None: codes are loaded.
        layers: the blocks of the transformer's layers, each with the number of its first one.
        head: the block of the output projection; None: that of the last layer.
        serialization_factor: parts of the text embedding and of the output projection.
        recomputation: keep activations between layers only, and compute the others again.
        fp16: hold weights and activations in half precision.
        fused: what is computed by operators of our own.
    """

    embedding: str
    image_tokenizer: str
    layers: Sequence[Tuple[str, int]]
    head: str
    serialization_factor: int = 1
    recomputation: bool = True
    fp16: bool = False
    fused: FusedOptions = FusedOptions()


class SerializedEmbedding(nn.Module):
    """An embedding table in parts, looked up one after the other: each lookup and its gradient need little memory.

    Args:
        embedding: the table.
        factor: parts; the last may be shorter.
    """

    def __init__(self, embedding: nn.Embedding, factor: int) -> None:
        super().__init__()
        size = -(-embedding.num_embeddings // factor)
        self.split_embeddings = nn.ModuleList(
            nn.Embedding.from_pretrained(part.clone(), freeze=False) for part in embedding.weight.detach().split(size)
        )

    def forward(self, ids: Tensor, position: Optional[Tensor] = None) -> Tensor:
        """See `models.dalle.embed`."""
        total, start = None, 0
        for part in self.split_embeddings:
            assert isinstance(part, nn.Embedding), "it is made of nothing else"
            inside = (ids >= start) & (ids < start + part.num_embeddings)
            rows = part((ids - start).clamp(0, part.num_embeddings - 1)) * inside[..., None].to(part.weight.dtype)
            total = rows if total is None else total + rows
            start += part.num_embeddings
        assert total is not None, "a table has at least one part"
        return total if position is None else total + position


class SerializedProjection(Projection):
    """An output projection whose product is computed in parts of the vocabulary.

    Args:
        projection: it takes the place of.
        factor: parts.
        poptorch: does the product.
    """

    def __init__(self, projection: Projection, factor: int, poptorch: PopTorch) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = projection.in_features, projection.out_features
        self.weight, self.bias = projection.weight, projection.bias
        self.factor, self._poptorch = factor, [poptorch]  # in a list: modules are copied with their model, once

    def __deepcopy__(self, memo: Dict[int, object]) -> SerializedProjection:
        plain = Projection(self.in_features, self.out_features)
        plain.weight, plain.bias = copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo)
        return SerializedProjection(plain, self.factor, self._poptorch[0])

    def forward(self, x: Tensor, segment: slice = WHOLE_VOCABULARY) -> Tensor:
        """(B, n, D) to (B, n, ids of `segment`)."""
        poptorch = self._poptorch[0]
        mode = poptorch.MatMulSerializationMode.OutputChannels
        product = poptorch.serializedMatMul(x.flatten(0, 1), self.weight[segment].t(), mode, self.factor)
        return product.unflatten(0, x.shape[:2]) + self.bias[segment]


class IpuModel(nn.Module):
    """Losses as IPUs compute them: block after block, the total marked as what is minimised.

    Args:
        model: the plain model, which is copied.
        options: how to cut it.
        poptorch: the one that runs it.

    Raises:
        OptionError: the output projection cannot be cut into as many parts; or see `ipu.fused.fuse`.
    """

    def __init__(self, model: TextToImage, options: LayerOptions, poptorch: PopTorch) -> None:
        super().__init__()
        self.options, self.poptorch = options, poptorch
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(True)
        self.model.image_tokenizer.requires_grad_(False)
        dalle = self.model.dalle
        dalle.inverts_layers = False  # PopART computes activations again by itself
        if options.serialization_factor > 1:
            _serialize(dalle, options.serialization_factor, not options.fused.embedding, poptorch)
        fuse(dalle, options.fused, options.serialization_factor, poptorch)
        if options.fp16:
            self.model.half()
        for name, first in options.layers:
            poptorch.BeginBlock(dalle.layers[first], user_id=name)
        poptorch.BeginBlock(dalle.norm, user_id=options.head)
        if options.recomputation:
            for layer in dalle.layers:
                layer.register_forward_hook(self._checkpoint)

    def forward(self, text: Tensor, images: Tensor) -> Tuple[Tensor, ...]:
        """Losses of captions (B, T) and pictures (B, C, H, W), or codes (B, I); see `Dalle.forward`; float32."""
        loss, *others = self.model.dalle(text, self.codes(images))
        loss = self.poptorch.identity_loss(loss, reduction="none")
        return tuple(scalar.float() for scalar in (loss, *others))

    def logits(self, text: Tensor, codes: Tensor) -> Tuple[Tensor, Tensor]:
        """See `Dalle.logits`; float32."""
        text_logits, image_logits = self.model.dalle.logits(text, self.codes(codes))
        return text_logits.float(), image_logits.float()

    def codes(self, images: Tensor) -> Tensor:
        """Codes of pictures; where the embeddings' block begins."""
        # A block hooks a module's call and nothing else, and a tokenizer is asked to `encode`: so it is begun by hand.
        if images.dim() == 4:
            self.poptorch.Block.start(self.options.image_tokenizer)
            images = as_unit_range(images).to(self.dtype)
        codes = self.model.encode(images).long()  # loaded codes have 32 bits, which torch's losses refuse
        self.poptorch.Block.start(self.options.embedding)
        return codes

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.float16 if self.options.fp16 else torch.float32

    def _checkpoint(self, layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return self.poptorch.recomputationCheckpoint(output)


class IpuLogits(nn.Module):
    """The model for drawing: from captions and the codes so far to logits.

    Args:
        model: shares its weights.
    """

    def __init__(self, model: IpuModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor, codes: Tensor) -> Tuple[Tensor, Tensor]:
        """See `Dalle.logits`."""
        return self.model.logits(text, codes)


def plain_state(named: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Tensors by the names of `IpuModel`'s parameters, as the plain model names them; parts of a table are joined."""
    state: Dict[str, Tensor] = {}
    parts: Dict[str, List[Tensor]] = {}
    for name, tensor in named.items():
        plain = name[len("model.") :]
        if ".split_embeddings." in plain:
            parts.setdefault(plain.split(".split_embeddings.")[0] + ".weight", []).append(tensor)
        else:
            state[plain] = tensor
    state.update({name: torch.cat(tensors) if tensors[0].dim() else tensors[0] for name, tensors in parts.items()})
    return state


def ipu_state(plain: Mapping[str, Tensor], names: Mapping[str, torch.Size]) -> Dict[str, Tensor]:
    """The reverse of `plain_state`.

    Args:
        plain: tensors by the plain model's names; such as have none are left out.
        names: of `IpuModel`'s parameters and buffers, with their shapes.
    """
    state: Dict[str, Tensor] = {}
    taken: Dict[str, int] = {}
    for name, shape in names.items():
        own = name[len("model.") :]
        if ".split_embeddings." not in own:
            if own in plain:
                state[name] = plain[own]
            continue
        whole = own.split(".split_embeddings.")[0] + ".weight"
        if whole in plain:
            start = taken.get(whole, 0)
            state[name] = plain[whole][start : start + shape[0]] if plain[whole].dim() else plain[whole]
            taken[whole] = start + shape[0]
    return state


def _serialize(dalle: Dalle, factor: int, embedding: bool, poptorch: PopTorch) -> None:
    """Cut the output projection into parts, and where `embedding` says so the text embedding."""
    for name, size in (("text", dalle.text_vocab_size), ("image", dalle.image_vocab_size)):
        if size % factor:
            raise OptionError(
                f"embedding_serialization_factor={factor} does not divide the {size} ids of the {name} vocabulary; "
                "take one that does"
            )
    dalle.to_logits = SerializedProjection(dalle.to_logits, factor, poptorch)
    if embedding and not dalle.options.share_input_output_emb:
        dalle.text_embedding = SerializedEmbedding(dalle.text_embedding, factor)  # type: ignore[assignment]
