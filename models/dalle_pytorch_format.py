"""DALLE-pytorch's checkpoints: its keywords and names of weights into ours, and back.

`dalle.pt` holds `hparams` (keywords of its DALLE), `vae_params` (keywords of its DiscreteVAE; none for a pretrained
image tokenizer), `vae_class_name`, `weights`, and what its training goes on from; `vae.pt` holds `hparams` and
`weights`. Its modules wrap each other differently in every release and under every option (`fn`, `net`, `layers`,
`blocks`), so a weight is recognised by the parts of its name that say something, not by the whole name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from models.options import TransformerOptions
from models.patterns import Layout
from models.rotary import rotary_angles
from options import UserError

VERSION = "1.6.6"
"""The release that files are written for."""
FIRST_WITH_CAUSAL_WINDOW = (1, 5)
"""Earlier ones lay the window of conv_like attention around the pixel."""
IMAGE_TOKENIZERS = {"DiscreteVAE": "DiscreteVAE", "OpenAIVAE": "OpenAIDiscreteVAE", "VQGan": "VQGanVAE"}
"""Our kinds of image tokenizers, and the names of its classes."""

IMAGE_SIZE = 256
"""Side of the pictures of its pretrained image tokenizers."""

_DEFAULTS = {"num_text_tokens": 10000, "text_seq_len": 256, "heads": 8, "dim_head": 64, "loss_img_weight": 7}
_OPTIONS = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "dim_head": "dim_head",
    "text_seq_len": "text_seq_len",
    "loss_img_weight": "loss_img_weight",
    "attn_dropout": "attn_dropout",
    "ff_dropout": "ff_dropout",
    "attn_types": "attn_types",
    "stable": "stable",
    "shared_attn_ids": "shared_attn_ids",
    "shared_ff_ids": "shared_ff_ids",
}
_SEEN_IN_WEIGHTS = ("sandwich_norm", "shift_tokens", "rotary_emb", "reversible", "share_input_output_emb")
_WITHOUT_EFFECT = {"optimize_for_inference", "sparse_attn"}  # of a trained model
_VAE_KEYWORDS = (
    "image_size",
    "num_tokens",
    "codebook_dim",
    "num_layers",
    "num_resnet_blocks",
    "hidden_dim",
    "channels",
    "smooth_l1_loss",
    "temperature",
    "straight_through",
    "reinmax",
    "kl_div_loss_weight",
    "normalization",
)

_VQGAN_MODULES = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
_OUTSIDE = {
    "text_emb": "text_embedding",
    "image_emb": "image_embedding",
    "text_pos_emb": "text_position",
    "to_logits.0": "norm",
    "to_logits.1": "to_logits",
}
_ATTENTION = {
    "norm": "attention_norm",
    "norm_out": "attention_out_norm",
    "to_qkv": "attention.to_qkv",
    "to_out.0": "attention.to_out",
}
_FEED_FORWARD = {
    "norm": "feed_forward_norm",
    "norm_out": "feed_forward_out_norm",
    "net.0": "feed_forward.to_inner",
    "net.3": "feed_forward.to_out",
}
_INSIDE_OF_LAYER = ("to_qkv", "to_out.0", "net.0", "net.3")  # what shared layers share, and what wrappers wrap
_LAYER = re.compile(r"transformer\.(?:layers\.)*(blocks\.)?(\d+)\.([01fg])\.(?:net\.)?((?:fn\.)*)(.+)")
_IMAGE_POSITION = re.compile(r"image_pos_emb\.weights[._]([01])")
_COPIES = re.compile(r"logits_mask|transformer\.pos_emb|(?:text|image)_emb\.linear\..+|.*\.static_mask")


class FormatError(UserError):
    """A file of another program that cannot be read, or a model that its format cannot say; names what and why."""


@dataclasses.dataclass(frozen=True)
class DalleParts:
    """A text-to-image model, as far as DALLE-pytorch's file tells.

    Attributes:
        options: values of `TransformerOptions`.
        text_vocab_size: ids of the text tokenizer.
        image_vocab_size: codes of the image tokenizer.
        weights: of `Dalle`.
        image_tokenizer: its `kind` and `arguments`; None where the file has none.
        image_tokenizer_weights: its weights.
    """

    options: Dict[str, Any]
    text_vocab_size: int
    image_vocab_size: int
    weights: Dict[str, Tensor]
    image_tokenizer: Optional[Dict[str, Any]]
    image_tokenizer_weights: Dict[str, Tensor]


def is_dalle(contents: Any) -> bool:
    """Whether a file's contents are a `dalle.pt`."""
    return isinstance(contents, Mapping) and {"hparams", "vae_params", "weights"} <= set(contents)


def is_vae(contents: Any) -> bool:
    """Whether a file's contents are a `vae.pt`."""
    return isinstance(contents, Mapping) and {"hparams", "weights"} <= set(contents) and "vae_params" not in contents


def read_dalle(contents: Mapping[str, Any]) -> DalleParts:
    """A `dalle.pt`, as a model of ours.

    Raises:
        FormatError: it holds no weights, or something that our model does not have.
    """
    weights = plain_weights(contents["weights"])
    keywords = {**_DEFAULTS, **contents["hparams"]}
    options = read_options(keywords, weights, contents.get("version"))
    dalle = read_weights(weights, options)
    _check_rotary(weights, options)
    text_vocab_size = int(keywords["num_text_tokens"])
    image_vocab_size = len(dalle["to_logits.weight"]) - text_vocab_size - options["text_seq_len"]
    image_tokenizer = read_image_tokenizer(weights, contents["vae_params"])
    return DalleParts(options, text_vocab_size, image_vocab_size, dalle, *image_tokenizer)


def write_dalle(
    options: TransformerOptions,
    text_vocab_size: int,
    layout: Layout,
    weights: Mapping[str, Tensor],
    image_tokenizer: Mapping[str, Any],
    image_tokenizer_weights: Mapping[str, Tensor],
    axial_package: str = "0.3",
) -> Dict[str, Any]:
    """A `dalle.pt` of our model.

    Args:
        options, text_vocab_size, layout: of the transformer.
        weights: of `Dalle`.
        image_tokenizer: `kind` and `arguments` of the image tokenizer.
        image_tokenizer_weights: its weights.
        axial_package: see `write_weights`.

    Raises:
        FormatError: DALLE-pytorch has no such model.
    """
    _check_expressible(options, layout)
    kind = image_tokenizer["kind"]
    is_discrete = kind == "DiscreteVAE"
    tokenizer_weights = write_image_tokenizer_weights(kind, image_tokenizer_weights)
    return {
        "hparams": write_keywords(options, text_vocab_size),
        "vae_params": write_vae_keywords(image_tokenizer["arguments"]) if is_discrete else None,
        "epoch": 0,
        "version": VERSION,
        "vae_class_name": IMAGE_TOKENIZERS[kind],
        "weights": {
            **write_weights(weights, options, layout, axial_package),
            **{f"vae.{name}": weight for name, weight in tokenizer_weights.items()},
        },
    }


def read_vae(contents: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Tensor]]:
    """A `vae.pt`: what to construct `DiscreteVAE` with, and its weights.

    Raises:
        FormatError: it is none of a discrete VAE.
    """
    if "num_tokens" not in contents["hparams"] and "codebook.weight" not in contents["weights"]:
        raise FormatError(
            "the file holds hparams and weights, but none of a DiscreteVAE; give a vae.pt of DALLE-pytorch"
        )
    return read_vae_keywords(contents["hparams"]), _with_usage(plain_weights(contents["weights"]))


def write_vae(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Dict[str, Any]:
    """A `vae.pt` of our `DiscreteVAE`.

    Raises:
        FormatError: DALLE-pytorch has no such VAE.
    """
    return {
        "hparams": write_vae_keywords(arguments),
        "weights": write_image_tokenizer_weights("DiscreteVAE", weights),
        "version": VERSION,
    }


def plain_weights(weights: Any) -> Dict[str, Tensor]:
    """The weights of a file in single precision, without the prefix that a wrapper around the model gave them.

    Raises:
        FormatError: there are none.
    """
    if not isinstance(weights, Mapping):  # DeepSpeed's stages 2 and 3 leave a sentence in their place
        raise FormatError(
            f"the file holds no weights, but {str(weights)[:100]!r}; make one file of DeepSpeed's parts with its "
            "zero_to_fp32.py first"
        )
    plain = {}
    for name, weight in weights.items():
        while name.startswith(("module.", "_orig_mod.")):
            name = name.split(".", 1)[1]
        plain[name] = weight.float() if weight.is_floating_point() else weight
    return plain


def read_options(keywords: Mapping[str, Any], weights: Mapping[str, Tensor], version: Any = None) -> Dict[str, Any]:
    """Values of `TransformerOptions`.

    What the weights show is taken from them: releases differ in their defaults, and files in what they say.

    Args:
        keywords: `hparams` of the file.
        weights: of the file.
        version: of the release that wrote it, if it says so.

    Raises:
        FormatError: a keyword is not known.
    """
    known = {*_OPTIONS, *_SEEN_IN_WEIGHTS, *_WITHOUT_EFFECT, "num_text_tokens", "vae"}
    unknown = [name for name in keywords if name not in known]
    if unknown:
        raise FormatError(f"the file's hparams hold {unknown[0]!r}, which DALLE-pytorch up to {VERSION} does not have")
    options = {ours: keywords[theirs] for theirs, ours in _OPTIONS.items() if keywords.get(theirs) is not None}
    for name in ("attn_types", "shared_attn_ids", "shared_ff_ids"):
        if name in options:
            value = options[name]
            options[name] = [value] if isinstance(value, str) else [str(item) for item in value]
    parts = [match.groups() for match in map(_LAYER.fullmatch, weights) if match]
    wrapped = [wrappers.count("fn.") for _, _, _, wrappers, rest in parts if rest.startswith("net.0")]
    options["sandwich_norm"] = any(rest.startswith("norm_out") for *_, rest in parts)
    options["shift_tokens"] = max(wrapped, default=0) > 2  # scale, normalisation, and what shifts
    options["rotary_emb"] = "text_pos_emb.weight" not in weights
    options["reversible"] = any(blocks is not None for blocks, *_ in parts)
    options["share_input_output_emb"] = "text_emb.weight" not in weights
    options["conv_window"] = "causal" if _has_causal_window(parts, version) else "centered"
    return options


def write_keywords(options: TransformerOptions, text_vocab_size: int) -> Dict[str, Any]:
    """Keywords of DALLE-pytorch's DALLE."""
    keywords = {theirs: getattr(options, ours) for theirs, ours in _OPTIONS.items()}
    keywords.update({name: getattr(options, name) for name in _SEEN_IN_WEIGHTS})
    return {"num_text_tokens": text_vocab_size, **keywords}


def read_vae_keywords(keywords: Mapping[str, Any]) -> Dict[str, Any]:
    """What to construct `DiscreteVAE` with, of the keywords of DALLE-pytorch's.

    Raises:
        FormatError: a keyword is not known.
    """
    unknown = [name for name in keywords if name not in _VAE_KEYWORDS]
    if unknown:
        raise FormatError(f"the VAE's parameters hold {unknown[0]!r}, which DALLE-pytorch's DiscreteVAE does not have")
    return dict(keywords)


def write_vae_keywords(arguments: Mapping[str, Any]) -> Dict[str, Any]:
    """The keywords of DALLE-pytorch's DiscreteVAE, of what ours was constructed with.

    Raises:
        FormatError: DALLE-pytorch has no such VAE.
    """
    keywords = {name: arguments[name] for name in _VAE_KEYWORDS if name in arguments}
    size, channels = keywords.get("image_size", 256), keywords.get("channels", 3)
    if not math.log2(size).is_integer():
        raise FormatError(f"image_size={size} is no power of 2, and DALLE-pytorch takes no other; keep this format")
    normalization = keywords.pop("normalization", None) or ((0.0,) * channels, (1.0,) * channels)
    means, deviations = (tuple(values) + (rest,) * channels for values, rest in zip(normalization, (0.0, 1.0)))
    keywords["normalization"] = (means[:channels], deviations[:channels])
    return keywords


def read_weights(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Weights of `Dalle` under its own names; `options` are its options.

    Raises:
        FormatError: a weight is not known.
    """
    ours: Dict[str, Tensor] = {}
    for theirs, weight in weights.items():
        if theirs.startswith("vae.") or _COPIES.fullmatch(theirs):
            continue
        name = _our_name(theirs)
        if name is None:
            raise FormatError(f"the file holds a weight {theirs!r}, which our model has no place for")
        if not _is_shared(name, options):
            is_scale, is_position = name.endswith("_scale.scale"), name.startswith("image_position.")
            ours[name] = weight.flatten() if is_scale else weight[0] if is_position else weight
    return ours


def write_weights(
    weights: Mapping[str, Tensor], options: TransformerOptions, layout: Layout, axial_package: str = "0.3"
) -> Dict[str, Tensor]:
    """The weights of `Dalle` under the names of DALLE-pytorch's DALLE.

    Args:
        weights: of `Dalle`.
        options, layout: of the transformer.
        axial_package: release of axial-positional-embedding to write for; before 0.3 it named its weights differently.
    """
    theirs: Dict[str, Tensor] = {}
    if options.rotary_emb:
        theirs["transformer.pos_emb"] = rotary_angles(layout, options.dim_head)[None]
    for ours, name in _their_names(options, axial_package):
        weight = weights[ours]
        is_scale, is_position = ours.endswith("_scale.scale"), ours.startswith("image_position.")
        theirs[name] = weight[None, None] if is_scale else weight[None] if is_position else weight
    return theirs


def read_image_tokenizer(
    weights: Mapping[str, Tensor], keywords: Optional[Mapping[str, Any]]
) -> Tuple[Optional[Dict[str, Any]], Dict[str, Tensor]]:
    """The image tokenizer inside a `dalle.pt`: its kind and arguments, and its weights. None, and none: there is none.

    Args:
        weights: of the file.
        keywords: `vae_params` of the file.
    """
    inside = {name[len("vae.") :]: weight for name, weight in weights.items() if name.startswith("vae.")}
    if "codebook.weight" in inside:
        return {"kind": "DiscreteVAE", "arguments": read_vae_keywords(keywords or {})}, _with_usage(inside)
    if any(name.startswith("enc.") for name in inside):
        halves = {"enc.": "encoder.", "dec.": "decoder."}
        inside = {halves[name[:4]] + name[4:]: weight for name, weight in inside.items() if name[:4] in halves}
        return {"kind": "OpenAIVAE", "arguments": openai_arguments(inside)}, inside
    if any(name.startswith("model.") for name in inside):
        inside = vqgan_weights({name[len("model.") :]: w for name, w in inside.items() if name.startswith("model.")})
        return {"kind": "VQGan", "arguments": vqgan_arguments(inside)}, inside
    return None, {}


def vqgan_weights(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A VQGAN's own weights, of all that taming's training saves."""
    return {name: weight for name, weight in weights.items() if name.split(".")[0] in _VQGAN_MODULES}


def vqgan_arguments(weights: Mapping[str, Tensor], resolution: int = IMAGE_SIZE) -> Dict[str, Any]:
    """What to construct `VQGan` with for these weights, as far as their shapes tell.

    Args:
        weights: under taming's names.
        resolution: side of the pictures, which no weight tells.
    """
    levels = _numbers(weights, r"encoder\.down\.(\d+)\.block\.0\.conv2\.weight")
    blocks = _numbers(weights, r"encoder\.down\.0\.block\.(\d+)\.conv2\.weight")
    attending = _numbers(weights, r"encoder\.down\.(\d+)\.attn\.0\.q\.weight")
    gumbel = "quantize.embed.weight" in weights
    codes = weights["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    first = weights["encoder.conv_in.weight"]
    widths = [len(weights[f"encoder.down.{level}.block.0.conv2.weight"]) for level in levels]
    return {
        "n_embed": codes.shape[0],
        "embed_dim": codes.shape[1],
        "gumbel": gumbel,
        "ch": first.shape[0],
        "ch_mult": [width // first.shape[0] for width in widths],
        "num_res_blocks": len(blocks),
        "attn_resolutions": [resolution // 2**level for level in attending],
        "in_channels": first.shape[1],
        "out_ch": len(weights["decoder.conv_out.weight"]),
        "resolution": resolution,
        "z_channels": weights["quant_conv.weight"].shape[1],
    }


def openai_arguments(weights: Mapping[str, Tensor]) -> Dict[str, Any]:
    """What to construct `OpenAIVAE` with for these weights, which have its names."""
    n_hid, channels = weights["encoder.blocks.input.w"].shape[:2]
    return {
        "group_count": len(_numbers(weights, r"encoder\.blocks\.group_(\d+)\.block_1\..+")),
        "n_hid": n_hid,
        "n_blk_per_group": len(_numbers(weights, r"encoder\.blocks\.group_1\.block_(\d+)\..+")),
        "input_channels": channels,
        "vocab_size": len(weights["encoder.blocks.output.conv.w"]),
        "n_init": len(weights["decoder.blocks.input.w"]),
        "image_size": IMAGE_SIZE,
    }


def write_image_tokenizer_weights(kind: str, weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """An image tokenizer's weights under the names of DALLE-pytorch's classes."""
    if kind == "DiscreteVAE":
        return {name: weight for name, weight in weights.items() if name != "usage"}
    if kind == "OpenAIVAE":
        halves = {"encoder.": "enc.", "decoder.": "dec."}
        return {halves[name[:8]] + name[8:]: weight for name, weight in weights.items()}
    return {f"model.{name}": weight for name, weight in weights.items()}


def _our_name(theirs: str) -> Optional[str]:
    """Our name of a weight outside the image tokenizer; None: we have none such."""
    position = _IMAGE_POSITION.fullmatch(theirs)
    if position:
        return "image_position." + ("row", "column")[int(position.group(1))]
    layer = _LAYER.fullmatch(theirs)
    if not layer:
        module, _, tensor = theirs.rpartition(".")
        return f"{_OUTSIDE[module]}.{tensor}" if module in _OUTSIDE else None
    _, number, branch, _, rest = layer.groups()
    is_attention = branch in "0f"
    if rest == "scale":
        return f"layers.{number}.{'attention' if is_attention else 'feed_forward'}_scale.scale"
    module, _, tensor = rest.rpartition(".")
    known = (_ATTENTION if is_attention else _FEED_FORWARD).get(module)
    return f"layers.{number}.{known}.{tensor}" if known else None


def _their_names(options: TransformerOptions, axial_package: str) -> Iterator[Tuple[str, str]]:
    """Pairs of our name and DALLE-pytorch's, in the order of its modules; of a shared layer, one a place."""
    if not options.rotary_emb:
        yield "text_position.weight", "text_pos_emb.weight"
        dot = "_" if axial_package == "0.2" else "."
        yield "image_position.row", f"image_pos_emb.weights{dot}0"
        yield "image_position.column", f"image_pos_emb.weights{dot}1"
    for number in range(options.num_hidden_layers):
        yield from _their_names_of_layer(options, number)
    for module, ours in (("to_logits.0", "norm"), ("to_logits.1", "to_logits")):
        yield from ((f"{ours}.{tensor}", f"{module}.{tensor}") for tensor in ("weight", "bias"))
    if options.share_input_output_emb:
        for part in ("text_emb", "image_emb"):
            yield from ((f"to_logits.{tensor}", f"{part}.linear.{tensor}") for tensor in ("weight", "bias"))
    else:
        yield "text_embedding.weight", "text_emb.weight"
        yield "image_embedding.weight", "image_emb.weight"


def _their_names_of_layer(options: TransformerOptions, number: int) -> Iterator[Tuple[str, str]]:
    shift = "fn.fn." if options.shift_tokens else ""
    branches = (
        ("attention", _ATTENTION, options.shared_attn_ids, f"fn.fn.{shift}fn."),  # one more keeps its cache
        ("feed_forward", _FEED_FORWARD, options.shared_ff_ids, f"fn.fn.{shift}"),
    )
    for index, (branch, modules, ids, wrappers) in enumerate(branches):
        place = f"layers.blocks.{number}.{'fg'[index]}.net" if options.reversible else f"layers.layers.{number}.{index}"
        yield f"layers.{number}.{branch}_scale.scale", f"transformer.{place}.scale"
        for module, ours in modules.items():
            if module == "norm_out" and not options.sandwich_norm:
                continue
            inside = module in _INSIDE_OF_LAYER
            home = _home(number, ids) if inside else number
            for tensor in ("weight",) if module == "to_qkv" else ("weight", "bias"):
                yield (
                    f"layers.{home}.{ours}.{tensor}",
                    f"transformer.{place}.{wrappers if inside else 'fn.'}{module}.{tensor}",
                )


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> List[int]:
    """The different numbers that stand in the names, where they match, ascending."""
    matches = (re.fullmatch(pattern, name) for name in weights)
    return sorted({int(match.group(1)) for match in matches if match})


def _home(number: int, ids: Optional[Sequence[str]]) -> int:
    """The layer that holds what layer `number` computes with: the first one that has its id."""
    return [ids[i % len(ids)] for i in range(number + 1)].index(ids[number % len(ids)]) if ids else number


def _is_shared(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a weight is that of an earlier layer once more."""
    match = re.match(r"layers\.(\d+)\.(attention|feed_forward)\.", name)
    if not match:
        return False
    ids = options.get("shared_attn_ids" if match.group(2) == "attention" else "shared_ff_ids")
    return _home(int(match.group(1)), ids) != int(match.group(1))


def _has_causal_window(layers: List[Tuple[str, ...]], version: Any) -> bool:
    """Whether the window of conv_like attention ends at the pixel, in the release that wrote the file."""
    numbers = re.findall(r"\d+", str(version or ""))
    if len(numbers) >= 2:
        return tuple(map(int, numbers[:2])) >= FIRST_WITH_CAUSAL_WINDOW
    # without a version: releases with a cache wrap attention once more than the feed-forward layer
    attention = [wrappers.count("fn.") for _, _, _, wrappers, rest in layers if rest.startswith("to_qkv")]
    feed_forward = [wrappers.count("fn.") for _, _, _, wrappers, rest in layers if rest.startswith("net.0")]
    return max(attention, default=0) > max(feed_forward, default=0)


def _with_usage(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """A discrete VAE's weights, with codes taken to be used alike, since DALLE-pytorch does not count."""
    count = len(weights["codebook.weight"])
    return {**weights, "usage": torch.full((count,), 1 / count)}


def _check_rotary(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
    if "transformer.pos_emb" not in weights:
        return
    angles, text_len = weights["transformer.pos_emb"].flatten(0, -2), options["text_seq_len"] + 1
    side = math.isqrt(max(len(angles) + 1 - text_len, 0))  # 1.1 leaves out the last pixel, which is never fed
    expected = rotary_angles(Layout(text_len, side, side), options["dim_head"])[: len(angles)]
    if angles.shape != expected.shape or not torch.allclose(angles, expected, rtol=1e-3, atol=1e-3):
        raise FormatError(
            "the file's rotary embedding (transformer.pos_emb) turns by other angles than DALLE-pytorch 1.1 to "
            f"{VERSION}; train with one of these"
        )


def _check_expressible(options: TransformerOptions, layout: Layout) -> None:
    if layout.rows != layout.columns:
        raise FormatError(
            f"a grid of {layout.rows}x{layout.columns} codes is no square, and DALLE-pytorch has no other"
        )
    fixed = {"conv_kernel_size": 5, "conv_dilation": 1, "conv_window": "causal"}
    for name, value in fixed.items() if "conv_like" in options.attn_types else ():
        if getattr(options, name) != value:
            raise FormatError(f"{name}={getattr(options, name)}, and DALLE-pytorch {VERSION} has {value} alone")
