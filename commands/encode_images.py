"""`python -m data.encode_images`: a folder of encoded pictures, made and verified."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from args import Settings
from bpe.tokenizer import Tokenizer
from checkpoint import identity
from commands.options import EncodingOptions
from data.archives import UNREADABLE_SHARD
from data.encoded import EncodedFolder
from data.encoded_format import EncodedRows, Encoding, code_type, describe_splits, read_manifest, verify_shard
from data.encoded_writer import REPORT, EncodedWriter, check_folder
from data.encoding import PreparedBatch, Source, open_sources
from data.options import DataOptions
from data.report import DataError, DataReport
from data.shard_journal import Entry
from models.build import describe_image_tokenizer
from models.image_tokenizer import ImageTokenizer
from models.options import TokenizerOptions
from opening import kept_image_tokenizer, open_image_tokenizer, open_tokenizer
from options import OptionError

_log = logging.getLogger(__name__)
_FEWEST_JUDGED = 1000  # samples that are not counted beforehand, before a share of unusable ones means anything
_ENCODED_AGAIN = 64  # pictures, to verify
_SAME_SHARE = 0.8  # of a picture's codes; another machine may decide some close ones otherwise
_SECONDS = 30  # between lines about progress
_ONLY_IN_TRAINING = ("byteio", "truncate_captions", "shuffle_buffer", "epoch_samples")


class PictureEncoder:
    """Turns pictures into codes.

    Args:
        image_tokenizer: does.
        options: on which device, in which precision, how many at once.

    Raises:
        OptionError: the device is not there, or has not this precision.
    """

    def __init__(self, image_tokenizer: ImageTokenizer, options: EncodingOptions) -> None:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(found if options.device == "auto" else options.device)
        if self.device.type == "cuda" and found == "cpu":
            raise OptionError("device=cuda, and torch sees no GPU here; use --device cpu, or install torch for CUDA")
        self.dtype = torch.float16 if options.fp16 else torch.bfloat16 if options.bf16 else torch.float32
        if self.device.type == "cpu" and self.dtype != torch.float32:
            name = "fp16" if options.fp16 else "bf16"
            raise OptionError(f"{name}=true is for GPUs, and the pictures are encoded on the CPU; leave {name} out")
        # convolutions are several times faster when a pixel's channels lie side by side
        on_device = image_tokenizer.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_tokenizer: ImageTokenizer = on_device.eval()
        self.batch_size = options.batch_size

    @property
    def precision(self) -> str:
        """What is computed in."""
        return str(self.dtype).replace("torch.", "")

    @torch.no_grad()
    def encode(self, pictures: Tensor, flips: bool) -> Tensor:
        """Pictures in bytes (n, crops, C, Y, X) to codes (n, versions, I)."""
        crops = pictures.to(self.device)
        versions = torch.stack((crops, crops.flip(-1)), dim=2) if flips else crops.unsqueeze(2)
        codes = [self._codes(some) for some in versions.flatten(0, 2).split(self.batch_size)] if len(crops) else []
        rows, columns = self.image_tokenizer.grid
        kind = code_type(self.image_tokenizer.num_tokens)
        shape = (len(crops), versions.shape[1] * versions.shape[2], rows * columns)
        return torch.cat(codes).to("cpu", kind).view(shape) if codes else torch.empty(shape, dtype=kind)

    def _codes(self, pictures: Tensor) -> Tensor:
        lower = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if lower else torch.bfloat16, enabled=lower):
            return self.image_tokenizer.encode(pictures)


class Progress:
    """Says how many samples are done: in a bar on a terminal, else in a line now and then."""

    def __init__(self, split: str, done: int, total: Optional[int]) -> None:
        self.split, self.done, self.total = split, done, total
        self._began, self._at_first, self._said = time.monotonic(), done, time.monotonic()
        self.bar: Any = None
        if sys.stdout.isatty():
            from tqdm import tqdm

            self.bar = tqdm(desc=split, total=total, initial=done, unit="picture", file=sys.stdout, dynamic_ncols=True)

    def add(self, samples: int) -> None:
        """Count samples."""
        self.done += samples
        if self.bar is not None:
            self.bar.update(samples)
        elif time.monotonic() - self._said > _SECONDS:
            self._say()

    def close(self) -> None:
        """Say what it came to."""
        if self.bar is not None:
            self.bar.close()
        else:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        speed = (self.done - self._at_first) / max(self._said - self._began, 1e-9)
        of = f" of {self.total}" if self.total is not None else ""
        print(f"{self.split}: {self.done}{of} samples, {speed:.1f} pictures/s", flush=True)


class EncodingRun:
    """Encodes what is missing in a folder.

    Args:
        writer: of the folder.
        encoder: of the pictures.
        sources: the dataset by split.
        report: of the data.
        options, data: options.
        left_out: files that were skipped before there were samples.
    """

    def __init__(
        self,
        writer: EncodedWriter,
        encoder: PictureEncoder,
        sources: Dict[str, Source],
        report: DataReport,
        options: EncodingOptions,
        data: DataOptions,
        left_out: int,
    ) -> None:
        self.writer, self.encoder, self.sources, self.report = writer, encoder, sources, report
        self.options, self.data, self.left_out = options, data, left_out
        self.seen = 0

    def run(self) -> None:
        """Encode all splits.

        Raises:
            DataError: more of the dataset is unusable than `max_bad_share` admits.
        """
        for split, source in self.sources.items():
            self._run_split(split, source)
        self._check(exact=True)
        if not any(shard.pictures for shard in self.writer.manifest.shards["train"].values()):
            raise DataError(f"not one of {self.seen} pictures can be used; {self.report.path} has the reasons")

    def _run_split(self, split: str, source: Source) -> None:
        begins: List[Tuple[int, int]] = []
        done = sum(shard.samples for shard in self.writer.manifest.shards[split].values())
        for number in self.writer.unfinished(split, source.parts):
            seen, ended = self.writer.progress(split, number)
            done += seen
            if ended:
                self.writer.finish(split, number, self.writer.journal(split, number))
            else:
                begins.append((number, seen))
        self.seen += done
        if not begins:
            return
        progress = Progress(split, done, source.listed)
        with contextlib.closing(progress):
            size = batch_pictures(self.writer.manifest.encoding, split, self.options.batch_size)
            batches = source.batches(begins, size, self.data.dataloader_workers)
            for number, some in itertools.groupby(batches, key=lambda batch: batch.part):
                journal = self.writer.journal(split, number)
                for batch in some:
                    entry = self._encode(split, batch)
                    progress.add(entry.seen - journal.seen)
                    self.seen += entry.seen - journal.seen
                    self._check(exact=False)
                    journal.append(entry)
                self.writer.finish(split, number, journal)

    def _encode(self, split: str, batch: PreparedBatch) -> Entry:
        rows = encode_batch(self.encoder, self.writer.manifest.encoding, split, batch)
        return Entry(rows, batch.seen, batch.ended)

    def _check(self, exact: bool) -> None:
        """Stop when too much is unusable; what is not counted beforehand is judged by what was seen."""
        listed = [source.listed for source in self.sources.values()]
        known = None if None in listed else sum(count for count in listed if count is not None) + self.left_out
        if known is None:
            known = self.seen if exact else max(self.seen, _FEWEST_JUDGED)
        self.report.check(known, self.data.max_bad_share)
        shards, unreadable = sum(source.parts for source in self.sources.values()), 0
        if self.data.wds:
            unreadable = self.report.counts.get(UNREADABLE_SHARD, 0)
        if unreadable > self.data.max_bad_share * shards:
            raise DataError(
                f"{unreadable} of {shards} shards cannot be read to their end, max_bad_share="
                f"{self.data.max_bad_share} allows {self.data.max_bad_share:.1%}; {self.report.path} lists them. Fetch "
                "them anew, or raise --max-bad-share"
            )


def batch_pictures(encoding: Encoding, split: str, batch_size: int) -> int:
    """Pictures whose crops and mirror images make a batch."""
    return max(batch_size // encoding.versions(split), 1)


def encode_batch(encoder: PictureEncoder, encoding: Encoding, split: str, batch: PreparedBatch) -> EncodedRows:
    """The rows of prepared samples."""
    codes = encoder.encode(batch.pictures, encoding.encoded_flips and split == "train")
    return batch.rows._replace(codes=codes)


def verify_files(folder: Path) -> str:
    """Hold every shard to the manifest, to the byte; returns what is there.

    Raises:
        DataError: something is missing or damaged.
    """
    encoded = EncodedFolder(folder, "out_dir", in_the_making=True)
    _ = encoded.tokenizer, kept_image_tokenizer(encoded)  # which refuse what is damaged
    manifest = encoded.manifest
    for split, shards in manifest.shards.items():
        for _, shard in sorted(shards.items()):
            verify_shard(folder, shard, manifest.encoding, split)
    return f"verified: {', '.join(describe_splits(manifest))}"


def verify(folder: Path, sources: Dict[str, Source], encoder: PictureEncoder, batch_size: int) -> str:
    """As `verify_files`, and `encode_again`."""
    return f"{verify_files(folder)}; {encode_again(folder, sources, encoder, batch_size)}"


def encode_again(folder: Path, sources: Dict[str, Source], encoder: PictureEncoder, batch_size: int) -> str:
    """Encode some pictures again, spread evenly over the shards; returns what was found.

    Raises:
        DataError: they have other codes now, or other captions.
    """
    encoding, shards = read_manifest(folder).encoding, read_manifest(folder).shards
    begins = [
        (split, number, begin)
        for split in sources
        for number, shard in sorted(shards[split].items())
        for begin in range(0, shard.samples, batch_pictures(encoding, split, batch_size))
    ]
    count = max(_ENCODED_AGAIN // batch_pictures(encoding, "train", batch_size), 1)
    equal, total, pictures = 0, 0, 0
    for split, number, begin in begins[:: max(len(begins) // count, 1)][:count]:
        shard, size = shards[split][number], batch_pictures(encoding, split, batch_size)
        now = encode_batch(encoder, encoding, split, sources[split].batch(number, begin, size))
        same = _same_codes(now, verify_shard(folder, shard, encoding, split), begin, size)
        if same is None or bool((same.float().mean(dim=1) < _SAME_SHARE).any()):
            raise DataError(
                f"{folder / shard.file}: samples {begin} to {begin + size - 1} of the dataset's part {number} are not "
                "what they were when they were encoded; encode the dataset again into another folder"
            )
        equal, total, pictures = equal + int(same.sum()), total + same.numel(), pictures + len(same)
    return f"{pictures} pictures encoded again, {equal / max(total, 1):.2%} of their codes equal"


def _same_codes(now: EncodedRows, rows: EncodedRows, begin: int, size: int) -> Optional[Tensor]:
    """Which codes (n, versions * I) of some samples are as they were; None: samples or captions differ."""
    chosen = ((rows.numbers >= begin) & (rows.numbers < begin + size)).nonzero().flatten()
    if not torch.equal(rows.numbers[chosen], now.numbers):
        return None
    if len(chosen):
        first, last = int(rows.captions[chosen[0]]), int(rows.captions[chosen[-1] + 1])
        ids = rows.ids[int(rows.starts[first]) : int(rows.starts[last])]
        if not torch.equal(ids, now.ids):
            return None
    return (rows.codes[chosen] == now.codes).flatten(1)


def describe(
    options: EncodingOptions,
    data: DataOptions,
    image_tokenizer: ImageTokenizer,
    tokenizer: Tokenizer,
    precision: str,
    sources: Dict[str, Source],
) -> Encoding:
    """What decides the tokens of a run."""
    return Encoding(
        image_tokenizer=json.loads(json.dumps(describe_image_tokenizer(image_tokenizer))),
        image_tokenizer_identity=identity(image_tokenizer),
        tokenizer_identity=tokenizer.identity,
        num_tokens=image_tokenizer.num_tokens,
        grid=list(image_tokenizer.grid),
        encoded_crops=options.encoded_crops,
        encoded_flips=options.encoded_flips,
        random_seed=options.random_seed,
        random_resize_crop_lower_ratio=data.random_resize_crop_lower_ratio,
        min_image_side=data.min_image_side,
        precision=precision,
        samples_per_shard=options.samples_per_shard,
        datasets={split: source.digest for split, source in sources.items()},
    )


def run(settings: Settings) -> None:
    """Assemble and encode, then verify; on Ctrl-C, leave what is done.

    Raises:
        SystemExit: on Ctrl-C.
    """
    try:
        _run(settings)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", flush=True)
        raise SystemExit(128 + signal.SIGINT) from None


def _run(settings: Settings) -> None:
    options, data, named = settings[EncodingOptions], settings[DataOptions], settings[TokenizerOptions]
    folder = Path(str(options.out_dir)).expanduser()
    check_folder(folder)
    if options.verify:
        EncodedFolder(folder, "out_dir")  # refuses one that is not complete
    if options.verify and data.input_folder is None:
        print(verify_files(folder), flush=True)
        return
    _name_without_effect(data)
    image_tokenizer, tokenizer = open_image_tokenizer(named, None), open_tokenizer(named, None)
    encoder = PictureEncoder(image_tokenizer, options)
    report = DataReport()  # moved to the folder once it is known to be this dataset's
    shape = (image_tokenizer.image_size, image_tokenizer.channels)
    rest = (options.samples_per_shard, report, options.random_seed)
    sources = open_sources(data, shape, tokenizer, options.encoded_crops, *rest)
    encoding = describe(options, data, image_tokenizer, tokenizer, encoder.precision, sources)
    writer = EncodedWriter(folder, encoding, {split: source.listed for split, source in sources.items()})
    if options.verify:
        print(verify(folder, sources, encoder, options.batch_size), flush=True)
        return
    with writer.alone():
        writer.begin(image_tokenizer.state_dict(), tokenizer.to_json())
        left_out = len(report.skipped)
        report.move(folder / REPORT)
        EncodingRun(writer, encoder, sources, report, options, data, left_out).run()
        if report.summary():
            print(f"data report ({report.path}):\n{report.summary()}", flush=True)
        print(verify(folder, sources, encoder, options.batch_size), flush=True)
        writer.complete(report)
    print(f"train from them with --input-folder {folder}", flush=True)


def _name_without_effect(data: DataOptions) -> None:
    """Say which options concern training alone."""
    defaults = DataOptions()
    changed = [name for name in _ONLY_IN_TRAINING if getattr(data, name) != getattr(defaults, name)]
    if changed:
        _log.info("for training only, without effect on encoding: %s", ", ".join(changed))
