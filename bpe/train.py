"""Train a vocabulary on captions: `python -m bpe.train --captions FILE [FILE ...] --out FILE.json`.

A FILE is a caption JSON in COCO's layout, or a text with a caption a line. The vocabulary begins with padding and the
256 bytes, so that every text can be encoded, and goes on with the pairs that are most frequent. Equal captions give the
same file, in whatever order they come and however many threads count them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import List, Optional, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bpe.tokenizer import HuggingFaceTokenizer

PADDING = "<pad>"
_SMALLEST = 257  # padding and the bytes


def read_captions(path: Path) -> List[str]:
    """Return the captions of a file, each on one line; the empty ones are left out.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is a JSON in another layout than COCO's, or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            captions = [annotation["caption"] for annotation in json.loads(text)["annotations"]]
        else:
            captions = text.split("\n")
        lines = [" ".join(str.split(caption)) for caption in captions]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is unusable ({error!r}); give a caption JSON in COCO's layout, or a text in UTF-8 with a caption "
            "a line"
        ) from None
    return [line for line in lines if line]


def train_vocabulary(captions: Sequence[str], vocab_size: int) -> str:
    """Return a tokenizer JSON of at most `vocab_size` ids; fewer when the captions hold no more pairs."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    # NFC comes last: a lower-case letter may have a composed form where its capital has none.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PADDING],  # the first id, 0
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer.to_str()


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Train, write the file in one piece and say what is in it."""
    args = _parse(arguments)
    if args.vocab_size < _SMALLEST:
        sys.exit(f"--vocab-size {args.vocab_size} is below {_SMALLEST}, padding and the 256 bytes; raise it")
    try:
        captions = [caption for path in args.captions for caption in read_captions(path)]
    except (OSError, ValueError) as error:
        sys.exit(f"--captions: {error}")
    if not captions:
        sys.exit(f"--captions: {', '.join(map(str, args.captions))} without a caption; give files that have some")
    text = train_vocabulary(captions, args.vocab_size)
    partial = args.out.with_name(f".{args.out.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, args.out)
    except OSError as error:
        sys.exit(f"--out: {error}; give a file in a folder that can be written to")
    tokenizer = HuggingFaceTokenizer(text)
    tokens = sum(map(len, tokenizer.encode_batch(captions)))
    print(
        f"{args.out}: {tokenizer.vocab_size} ids of {args.vocab_size} asked for, from {len(captions)} captions; "
        f"{tokens / len(captions):.2f} tokens a caption"
    )


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bpe.train", description="Train a vocabulary on captions.")
    sources = "caption JSONs in COCO's layout, texts with a caption a line"
    parser.add_argument("--captions", type=Path, nargs="+", required=True, help=sources)
    parser.add_argument("--out", type=Path, required=True, help="tokenizer JSON to write")
    parser.add_argument("--vocab-size", type=int, default=8192, help="ids, padding included (default 8192)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
