"""Look a dataset over before training: `python -m data.check DATASET`, or shards: `... SHARDS --wds img,cap`.

Says how many pairs and captions there are, what would be skipped and why, how large the images and how long the
captions are, and what occurs twice; of encoded pictures, whether they are whole. The exit status is 0 when training
would skip nothing, otherwise 1.

What needs torch is imported where it is used: most of this does not, and starts at once.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import hashlib
import io
import itertools
import os
import statistics
import sys
from pathlib import Path
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from data.archives import Keys, find_shards, parse_keys, read_shard
from data.captions import Pair, Tokenizer
from data.images import BadImage, load_image
from data.options import DataOptions
from data.pairs import open_pairs
from data.places import is_encoded
from data.report import DataReport

_AT_ONCE = 512  # samples of shards
_BINS = 10
_BAR = 40  # characters of the longest bar


class Picture(NamedTuple):
    """What is known of an image that decodes: pixels, and a digest of its content."""

    width: int
    height: int
    digest: bytes


def inspect_image(source: Union[Path, bytes]) -> Union[Picture, Tuple[str, str]]:
    """Decode an image file, or its content; of an unusable one, return the kind and the detail of what is wrong."""
    try:
        image, _ = load_image(io.BytesIO(source) if isinstance(source, bytes) else source, DataOptions().min_image_side)
    except BadImage as bad:
        return bad.kind, bad.detail
    return Picture(image.width, image.height, hashlib.sha256(image.tobytes()).digest())


def inspect_images(images: Sequence[Path], workers: int, report: DataReport) -> List[Picture]:
    """Decode all images in `workers` processes; the unusable ones go to `report`."""
    pictures = []
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        for path, found in zip(images, pool.map(inspect_image, images, chunksize=16)):
            if isinstance(found, Picture):
                pictures.append(found)
            else:
                report.skip(found[0], path, found[1])
    return pictures


def inspect_shards(
    shards: Sequence[str], keys: Keys, workers: int, report: DataReport
) -> Tuple[List[Pair], List[Picture]]:
    """Read all samples of shards, a few at a time; the unusable ones go to `report`.

    Raises:
        DataError: a shard is refused.
    """
    from data.shard_samples import parse_captions

    pairs: List[Pair] = []
    pictures: List[Picture] = []
    read = ((shard, sample) for shard in shards for sample in read_shard(shard, keys, report.skip))
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        while True:
            some = list(itertools.islice(read, _AT_ONCE))
            if not some:
                return pairs, pictures
            found = pool.map(inspect_image, [sample.image.data for _, sample in some], chunksize=16)
            for (shard, sample), picture in zip(some, found):
                place = f"{shard}#{sample.image.name}"
                try:
                    captions = parse_captions(sample.caption) if sample.caption else []
                    if not isinstance(picture, Picture):
                        raise BadImage(*picture)
                except BadImage as bad:
                    report.skip(bad.kind, place, bad.detail)
                    continue
                pairs.append(Pair(Path(place), tuple(captions)))
                pictures.append(picture)


def describe_pairs(pairs: Sequence[Pair]) -> List[str]:
    """Say how many pairs and captions there are, and how many captions occur more than once."""
    captions = [caption for pair in pairs for caption in pair.captions]
    a_pair = _spread(len(pair.captions) for pair in pairs)
    return [
        f"pairs: {len(pairs)}",
        f"captions: {len(captions)}, an image {a_pair}",
        f"captions that repeat an earlier one: {len(captions) - len(set(captions))}",
    ]


def describe_pictures(pictures: Sequence[Picture]) -> List[str]:
    """Say how large the images are, and how many have equal content."""
    return [
        f"width in pixels: {_spread(picture.width for picture in pictures)}",
        f"height in pixels: {_spread(picture.height for picture in pictures)}",
        f"images that repeat an earlier one: {len(pictures) - len(set(pictures))}",
    ]


def describe_tokens(pairs: Sequence[Pair], tokenizer: Tokenizer, text_seq_len: int) -> List[str]:
    """As `describe_lengths`, of the captions of pairs."""
    captions = [caption for pair in pairs for caption in pair.captions]
    return describe_lengths([len(ids) for ids in tokenizer.encode_batch(captions)], text_seq_len)


def describe_lengths(lengths: Sequence[int], text_seq_len: int) -> List[str]:
    """Draw the histogram of caption lengths in tokens, and say how many are above `text_seq_len`."""
    width = max(lengths) // _BINS + 1
    bins = collections.Counter(length // width for length in lengths)
    lines = [f"tokens a caption: {_spread(lengths)}"]
    for number in range(max(bins) + 1):
        bar = "#" * round(_BAR * bins[number] / max(bins.values()))
        lines.append(f"{number * width:6}-{(number + 1) * width - 1:<5}{bins[number]:8} {bar}".rstrip())
    over = sum(length > text_seq_len for length in lengths)
    return lines + [f"captions over text_seq_len={text_seq_len}: {over} of {len(lengths)} ({over / len(lengths):.1%})"]


def inspect_encoded(folder: str, text_seq_len: int) -> List[str]:
    """Say what a folder of encoded pictures holds.

    Raises:
        DataError: it is not whole.
    """
    from data.encoded import EncodedFolder
    from data.encoded_format import describe_splits, verify_shard

    encoded = EncodedFolder(folder, "dataset")
    lengths: List[int] = []
    for split, shards in encoded.manifest.shards.items():
        for shard in shards.values():
            lengths += verify_shard(encoded.folder, shard, encoded.encoding, split).starts.diff().tolist()
    skipped = [f"skipped {count} when they were encoded: {kind}" for kind, count in encoded.manifest.skipped.items()]
    return [*describe_splits(encoded.manifest), *describe_lengths(lengths, text_seq_len), *skipped]


def _spread(values: Iterable[int]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "none"
    return f"min {ordered[0]}, median {statistics.median_low(ordered)}, max {ordered[-1]}"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the findings; return the exit status."""
    args = _parse(arguments)
    report = DataReport(args.report)
    workers = max(args.workers, 1)
    try:
        if is_encoded(args.dataset):
            print("\n".join([*inspect_encoded(args.dataset, args.text_seq_len), "all of it is whole"]))
            return 0
        options = DataOptions(
            input_folder=args.dataset,
            captions_folder=args.captions_folder,
            annotations=args.annotations,
            wds=args.wds,  # type: ignore[arg-type]
        )
        if options.wds:
            shards = find_shards("dataset", args.dataset)
            pairs, pictures = inspect_shards(shards, parse_keys(options.wds), workers, report)
            lines = [f"shards: {len(shards)}"]
        else:
            pairs = [pair for split in ("train", "validation") for pair in open_pairs(options, split, report)]
            pictures, lines = inspect_images([pair.image for pair in pairs], workers, report), []
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    lines += describe_pairs(pairs) + describe_pictures(pictures)
    if args.bpe_path is not None or args.chinese:
        from bpe.tokenizer import load_tokenizer

        lines += describe_tokens(pairs, load_tokenizer(args.bpe_path, args.chinese, args.hug), args.text_seq_len)
    print("\n".join([*lines, report.summary() or "nothing would be skipped"]))
    return 1 if report.skipped else 0


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.check", description="Look a dataset over before training.")
    parser.add_argument("dataset", help="folder of pictures, encoded ones or not; with --wds, shards")
    parser.add_argument("--captions-folder", help="folder of caption files, when they do not lie with the images")
    parser.add_argument("--annotations", help="COCO caption JSON of the images in the dataset's folder")
    parser.add_argument("--wds", default="", help="the dataset is shards: keys of image and captions, such as img,cap")
    parser.add_argument("--bpe-path", help="vocabulary; with it, the captions' lengths in tokens are shown")
    parser.add_argument("--chinese", action="store_true", help="BERT's Chinese vocabulary, from the hub or --bpe-path")
    parser.add_argument("--hug", action="store_true", help="--bpe-path has to be a Hugging Face tokenizer JSON")
    parser.add_argument("--text-seq-len", type=int, default=80, help="tokens that a caption may have (default 80)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that decode images")
    parser.add_argument("--report", help="JSON-lines file that gets every file that would be skipped")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
