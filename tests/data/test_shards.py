"""WebDataset shards: where they come from, in which order, what of them is used, and how they are made."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import itertools
import os
import random
import shlex
import signal
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest
import torch
from PIL import Image
from torch import nn

from data import archives, images, pixels, shard_index
from data.archives import Member
from data.check import main as check
from data.dataset import PictureReader, SampleDataset
from data.options import DataOptions
from data.report import DataError, DataReport
from data.shard_samples import CaptionReader, SampleReader, parse_captions
from data.shard_writer import main as make_shards
from data.shards import ShardDataset, ShardStream, open_shards, open_validation_shards
from engines.host import HostEngine
from engines.options import IpuOptions, TrainingOptions
from engines.sampler import EpochSampler
from options import OptionError

COUNTS = (5, 9, 1, 7)  # samples of the shards
TOTAL = sum(COUNTS)
Name = Tuple[int, int]  # shard and number


class LetterTokenizer:
    """A letter's id is its code."""

    def encode(self, text: str) -> List[int]:
        return [ord(letter) for letter in text]

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        return [self.encode(text) for text in texts]


def picture(shard: int, number: int, form: str = "PNG") -> bytes:
    """A picture of one colour that says which it is."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (shard, number, 99)).save(stream, form)
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes, **header: Any) -> None:
    """Put a member into an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in header.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def write_shard(path: Path, number: int, count: int) -> Path:
    """A shard of `count` sound samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for sample in range(count):
            add(archive, f"{sample:04}.cap", f"shard {number}, sample {sample}".encode())
            add(archive, f"{sample:04}.img", picture(number, sample))
            add(archive, f"{sample:04}.json", b"{}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards of different lengths, nested."""
    return write_shards(tmp_path / "shards", ".tar")


def write_shards(folder: Path, extension: str) -> Path:
    for number, count in enumerate(COUNTS):
        write_shard(folder / "part" / f"shard-{number:03}{extension}", number, count)
    return folder


def opened(
    address: Any, tmp_path: Path, report: Optional[DataReport] = None, rank: int = 0, world_size: int = 1,
    seed: int = 0, texts: Optional[int] = None, **options: Any,
) -> Any:  # fmt: skip
    """The dataset of an address; `texts` are the tokens of a caption."""
    report = report or DataReport()
    data = DataOptions(input_folder=str(address), **{"wds": "img,cap", "byteio": True, **options})
    captions = CaptionReader(LetterTokenizer(), texts, report, data.truncate_captions) if texts else None
    reader = SampleReader(PictureReader(data, 8, report), captions)
    return open_shards(data, reader, report, seed, tmp_path / "run", rank, world_size)


def named(images: torch.Tensor) -> List[Name]:
    """Which pictures a batch holds."""
    return [(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in images]


def taken(
    dataset: Any, batch: int = 2, start: int = 0, epochs: Optional[int] = 1, workers: int = 0, seed: int = 0
) -> List[Name]:
    """The samples that training on `dataset` gets, in order."""
    options = TrainingOptions(device="cpu", batch_size=batch, random_seed=seed)
    engine = HostEngine(nn.Linear(1, 1), options, IpuOptions(), workers)
    return [name for b in engine.loader(dataset, start, epochs) for inputs in b for name in named(*inputs)]


ALL = [(shard, number) for shard, count in enumerate(COUNTS) for number in range(count)]


# where shards come from


class Server(NamedTuple):
    """A web server with its files, and the requests it was sent."""

    url: str
    requests: List[str]
    breaks: List[int]  # bytes after which an answer is cut, from the first request on


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves `tmp_path` on this machine until the test ends."""
    requests: List[str] = []
    breaks: List[int] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            requests.append(self.path)

        def copyfile(self, source: Any, outputfile: Any) -> None:
            outputfile.write(source.read(breaks.pop(0)) if breaks else source.read())

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    ) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield Server(f"http://127.0.0.1:{httpd.server_address[1]}", requests, breaks)
        httpd.shutdown()
        thread.join()


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program before all others of its name."""
    program = tmp_path / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


RANGE = "shard-{000..003}.tar"


@pytest.mark.parametrize(
    "form", ["folder", "range", "file", "range.gz", "folder.tgz", "http", "pipe", "gs", "s3", "one tar"]
)
def test_every_form_of_address_gives_the_same_samples_in_the_same_order(
    folder: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    wanted, options, kind = taken(opened(folder, tmp_path), epochs=3), {}, ShardStream
    part = folder / "part"
    if form in ("http", "pipe", "gs", "s3"):
        options["epoch_samples"] = TOTAL
    if form in ("folder", "range", "file"):
        kind = ShardDataset
        address = {"folder": part, "range": part / RANGE, "file": f"file://{part}/{RANGE}"}[form]
    elif form == "range.gz":
        address = write_shards(tmp_path / "packed", ".tar.gz") / "part" / (RANGE + ".gz")
    elif form == "folder.tgz":
        address = write_shards(tmp_path / "packed", ".tgz")
    elif form == "http":
        address = f"{server.url}/shards/part/{RANGE}"
    elif form == "pipe":
        address = f"pipe:cat {shlex.quote(str(part))}/{RANGE}"
        monkeypatch.setattr("sys.argv", ["train.py", f"--input-folder={address}"])
    elif form == "gs":
        install(tmp_path, monkeypatch, "gsutil", f'[ "$1" = cat ] && cat "{part}/${{2#gs://bucket/}}"')
        address = f"gs://bucket/{RANGE}"
    elif form == "s3":
        install(tmp_path, monkeypatch, "aws", f'[ "$1 $2 $4" = "s3 cp -" ] && cat "{part}/${{3#s3://bucket/}}"')
        address = f"s3://bucket/{RANGE}"
    else:
        one, kind = write_shard(tmp_path / "one.tar", 1, 9), ShardDataset
        address, wanted = one, taken(opened(one, tmp_path), epochs=3)
    dataset = opened(address, tmp_path, **options)
    assert isinstance(dataset, kind)
    assert taken(dataset, epochs=3) == wanted
    assert taken(dataset, epochs=3, workers=2) == wanted
    assert len(set(wanted)) in (TOTAL, TOTAL - 1, 9, 8)


def test_an_address_is_one_word_of_its_command_whatever_stands_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'it\'s a $(touch hacked) `touch hacked`; touch hacked & "x" #.tar'
    shard = write_shard(tmp_path / name, 0, 3)
    monkeypatch.chdir(tmp_path)
    install(tmp_path, monkeypatch, "aws", f'cat "{tmp_path}/${{3#s3://}}"')
    assert sorted(set(taken(opened(f"s3://{shard.name}", tmp_path, epoch_samples=3), batch=1))) == ALL[:3]
    assert not (tmp_path / "hacked").exists()


def test_a_command_that_is_not_on_the_command_line_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--config", "mine"])
    with pytest.raises(OptionError, match="input_folder=pipe:touch .* does not stand on the command line"):
        opened(f"pipe:touch {tmp_path}/run_it", tmp_path, epoch_samples=3)
    assert not (tmp_path / "run_it").exists()


@pytest.mark.parametrize(
    "address", ["{folder}/x.tar::pipe:touch {folder}/run_it", "{{pipe:touch {folder}/run_it,{folder}/x.tar}}", "pipe:t"]
)
def test_a_command_that_only_appears_as_an_address_is_expanded_is_not_run_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    write_shard(tmp_path / "x.tar", 0, 3)
    monkeypatch.setattr("sys.argv", ["train.py", "--input-folder=pipe:tac x.tar"])  # of which `pipe:t` is a part
    with pytest.raises(OptionError, match="is a command, and it does not stand on the command line"):
        taken(opened(address.format(folder=tmp_path), tmp_path, epoch_samples=3, max_bad_share=1))
    assert not (tmp_path / "run_it").exists()


def test_nobody_waits_for_a_command_whose_shard_is_no_longer_wanted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"pipe:cat {shlex.quote(str(folder))}/part/shard-001.tar; exec sleep 60"
    monkeypatch.setattr("sys.argv", ["train.py", address])
    began = time.monotonic()
    assert named(opened(address, tmp_path, epoch_samples=9)[0][None]) == [(1, 0)]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "address, message",
    [
        ("none/here.tar", r"input_folder: the shard none/here.tar does not exist"),
        ("empty", "input_folder=.*empty holds no shard; looked for files that end with .tar"),
        ("ftp://host/x.tar", "input_folder=ftp://host/x.tar is no address that is understood; give a path, http://"),
        ("http://host/x.tar", "epoch_samples is not set, and http://host/x.tar cannot be counted"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, OptionError), match=message):
        opened(address, tmp_path)


def test_a_shard_of_a_folder_that_cannot_be_opened_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "part" / "lost.tar").symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(DataError, match="part/lost.tar cannot be opened .No such file or directory.; mend that"):
        opened(folder, tmp_path)


def test_shards_in_linked_folders_count_once_and_a_circle_of_links_ends(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_shard(elsewhere / "more.tar", 9, 2)
    (folder / "a link").symlink_to(elsewhere)
    (folder / "the same").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert sorted(taken(opened(folder, tmp_path), batch=1)) == [*ALL, (9, 0), (9, 1)]


def test_without_webdataset_its_option_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(OptionError, match="wds needs the package webdataset: pip install webdataset"):
        opened(folder, tmp_path)


def test_a_program_that_fetches_shards_and_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match="gs://b/x.tar is fetched with gsutil, which is not installed here"):
        taken(opened("gs://b/x.tar", tmp_path, epoch_samples=2))


def test_a_connection_that_breaks_off_is_taken_up_again_where_it_broke(
    folder: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_PAUSES", (0.0, 0.0))
    server.breaks[:] = [4000, 100, 10**6, 9000]
    report = DataReport()
    dataset = opened(f"{server.url}/shards/part/{RANGE}", tmp_path, report, epoch_samples=TOTAL)
    assert taken(dataset, batch=1) == taken(opened(folder, tmp_path), batch=1)
    assert not report.skipped
    assert len(server.requests) == 4 + 3


def test_a_shard_that_is_not_there_any_more_is_reported_and_stops_training_when_it_is_too_much(
    folder: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_PAUSES", ())
    address, report = f"{server.url}/shards/part/shard-{{000..004}}.tar", DataReport()
    dataset = opened(address, tmp_path, report, epoch_samples=TOTAL, max_bad_share=0.2)
    assert sorted(taken(dataset, batch=1)) == ALL
    assert report.counts == {"unreadable shard": 1}
    assert report.skipped == [f"{server.url}/shards/part/shard-004.tar"]
    with pytest.raises(DataError, match=r"1 of 5 shards \(20.0%\) cannot be read .*max_bad_share=0.1.*shard-004.tar"):
        taken(opened(address, tmp_path, epoch_samples=TOTAL, max_bad_share=0.1))


# in which order


@pytest.fixture(params=["indexed", "counted stream", "uncounted stream"])
def source(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Opens the four shards in each of the ways that they can be read."""
    if request.param == "indexed":
        return functools.partial(opened, folder, tmp_path)
    packed = write_shards(tmp_path / "packed", ".tar.gz")
    options = {"epoch_samples": TOTAL} if request.param == "uncounted stream" else {}
    return functools.partial(opened, packed, tmp_path, **options)


def test_the_order_depends_on_seed_and_epoch_alone(source: Callable[..., Any]) -> None:
    order = taken(source(), batch=1, epochs=2)
    first, second = order[:TOTAL], order[TOTAL:]
    assert sorted(first) == sorted(second) == ALL
    assert first != second and first != ALL
    assert taken(source(), batch=1, epochs=2) == order
    assert taken(source(seed=1), batch=1) != first


def test_shards_are_permuted_and_samples_drawn_from_a_buffer(source: Callable[..., Any]) -> None:
    names = taken(source(shuffle_buffer=1), batch=1, epochs=3)
    orders = [names[n * TOTAL :][:TOTAL] for n in range(3)]
    for order in orders:
        shards = [shard for shard, _ in itertools.groupby(order, key=lambda name: name[0])]
        assert sorted(shards) == [0, 1, 2, 3], "without a buffer, shards follow each other whole"
        assert all([n for s, n in order if s == shard] == list(range(COUNTS[shard])) for shard in shards)
    assert len({tuple(order) for order in orders}) == 3
    mixed = taken(source(shuffle_buffer=4), batch=1)
    places = {name: place for place, name in enumerate(orders[0])}
    assert mixed != orders[0] and sorted(mixed) == ALL
    assert all(places[name] < place + 4 for place, name in enumerate(mixed)), "no sample comes before the buffer saw it"


@pytest.mark.parametrize("start", [2, 8, 20, 22, 30, 44, 60])
def test_a_run_entered_later_gets_exactly_the_rest_whatever_the_number_of_loaders(
    source: Callable[..., Any], start: int
) -> None:
    whole = taken(source(), epochs=3)
    assert len(whole) == 3 * 22
    for workers in (0, 1, 2):
        assert taken(source(), start=start, epochs=3, workers=workers) == whole[start:]


def test_what_a_resumed_run_skips_is_not_decoded(source: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, decoded = source(), []
    load = pixels.load_pixels
    monkeypatch.setattr("data.dataset.load_pixels", lambda *a: decoded.append(a) or load(*a))
    assert len(taken(dataset, start=16, epochs=1)) == len(decoded) == 6


def test_indexed_samples_that_are_skipped_are_not_even_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, read = opened(folder, tmp_path), []
    stored = dataset.stored
    monkeypatch.setattr(dataset, "stored", lambda position: read.append(position) or stored(position))
    taken(dataset, start=16)
    assert len(read) == 6


def test_a_sample_is_the_same_in_whichever_way_its_shard_is_read(folder: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    for extension in (".tar", ".tar.gz"):
        with tarfile.open(tmp_path / f"noise{extension}", "w:gz" if extension.endswith("gz") else "w") as archive:
            rng.seed(0)
            for sample in range(6):
                pixels = bytes(rng.randrange(256) for _ in range(24 * 16 * 3))
                stream = io.BytesIO()
                Image.frombytes("RGB", (24, 16), pixels).save(stream, "PNG")
                add(archive, f"{sample}.png", stream.getvalue())
                add(archive, f"{sample}.txt", b"one\ntwo\nthree\nfour")

    def batches(dataset: Any, epochs: int) -> List[Any]:
        engine = HostEngine(nn.Linear(1, 1), TrainingOptions(device="cpu"), IpuOptions(), 0)
        return [inputs for batch in engine.loader(dataset, 0, epochs) for inputs in batch]

    options = {"texts": 8, "wds": "jpg;png,txt"}
    indexed = batches(opened(tmp_path / "noise.tar", tmp_path, **options), 4)
    streamed = batches(opened(tmp_path / "noise.tar.gz", tmp_path, **options), 4)
    assert len(indexed) == len(streamed) == 24
    assert all(torch.equal(a, b) for one, other in zip(indexed, streamed) for a, b in zip(one, other))
    assert len({tuple(text.flatten().tolist()) for text, _ in indexed}) == 4, "each of the captions is drawn"
    assert len({bytes(image.flatten().tolist()) for _, image in indexed}) > 12, "crops differ between epochs"


@pytest.mark.parametrize("world_size", [2, 3, 4, 7])
def test_ranks_share_an_epoch_in_equal_parts_without_overlap(source: Callable[..., Any], world_size: int) -> None:
    datasets = [source(rank=rank, world_size=world_size) for rank in range(world_size)]
    share = TOTAL // world_size
    assert [len(dataset) for dataset in datasets] == [share] * world_size
    parts = [taken(dataset, batch=1, epochs=2, workers=2) for dataset in datasets]
    assert [len(part) for part in parts] == [2 * share] * world_size
    for epoch in range(2):
        own = [set(part[epoch * share : (epoch + 1) * share]) for part in parts]
        assert all(not one & other for one, other in itertools.combinations(own, 2))
        if datasets[0]._order.counts is not None:
            assert sum(map(len, own)) == share * world_size, "counted samples come once an epoch"


def test_fewer_uncounted_shards_than_ranks_are_split_by_samples(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "one.tar.gz", 0, 10)
    parts = [taken(opened(shard, tmp_path, rank=rank, world_size=3, epoch_samples=9), batch=1) for rank in range(3)]
    assert [sorted(number % 3 for _, number in part) for part in parts] == [[0] * 3, [1] * 3, [2] * 3]
    assert all(len(set(part)) == 3 for part in parts)


def test_an_epoch_of_more_samples_than_there_are_goes_through_them_again(source: Callable[..., Any]) -> None:
    dataset = source(epoch_samples=50)
    order = taken(dataset, batch=1)
    assert len(dataset) == len(order) == 50
    assert sorted(order[:TOTAL]) == sorted(order[TOTAL : 2 * TOTAL]) == ALL
    assert order[:TOTAL] != order[TOTAL : 2 * TOTAL]
    assert taken(dataset, batch=1, start=30) == order[30:]


def test_samples_that_come_again_within_an_epoch_are_cut_anew(tmp_path: Path) -> None:
    pixels, stream = random.Random(0), io.BytesIO()
    Image.frombytes("RGB", (48, 32), bytes(pixels.randrange(256) for _ in range(48 * 32 * 3))).save(stream, "PNG")
    cuts = {}
    for extension in (".tar", ".tar.gz"):
        shard = tmp_path / f"x{extension}"
        with tarfile.open(shard, "w:gz" if extension.endswith("gz") else "w") as archive:
            for sample in range(2):
                add(archive, f"{sample}.img", stream.getvalue())
        engine = HostEngine(nn.Linear(1, 1), TrainingOptions(device="cpu", batch_size=1), IpuOptions(), 0)
        dataset = opened(shard, tmp_path, wds="img", epoch_samples=20)
        pictures = (image for batch in engine.loader(dataset, 0, 1) for (image,) in batch)
        cuts[extension] = [bytes(image.flatten().tolist()) for image in pictures]
    assert len(set(cuts[".tar"])) > 15
    assert cuts[".tar"] == cuts[".tar.gz"]


def test_every_index_of_an_epoch_has_its_sample(folder: Path, tmp_path: Path) -> None:
    for epoch_samples in (6, TOTAL, 50):
        dataset = opened(folder, tmp_path, epoch_samples=epoch_samples)
        samples = [named(image[None])[0] for image in dataset]  # up to the first IndexError
        assert samples == list(itertools.islice(itertools.cycle(ALL), epoch_samples))


def test_taking_one_sample_of_very_many_does_not_list_them_all() -> None:
    class Positions(SampleDataset):
        def _sample(self, position: int, rng: random.Random) -> Any:
            return position

    data, report = DataOptions(), DataReport()
    many = Positions(range(10**15), PictureReader(data, 8, report), report, 0)  # type: ignore[arg-type]
    assert many[7] == 7


def test_an_epoch_of_fewer_samples_takes_others_each_time(source: Callable[..., Any]) -> None:
    order = taken(source(epoch_samples=6), batch=2, epochs=20)
    epochs = [order[6 * n : 6 * n + 6] for n in range(20)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert sorted(set(order)) == ALL


def test_shards_smaller_than_a_batch_repeat_within_it(source: Callable[..., Any]) -> None:
    order = taken(source(), batch=30, epochs=2)
    assert len(order) == 60 and sorted(order[:TOTAL]) == ALL
    assert taken(source(), batch=30, start=30, epochs=2) == order[30:]


def test_the_sampler_s_spans_are_its_keys() -> None:
    for length, start in itertools.product((3, 10, 12), (0, 4, 8, 12, 20)):
        sampler = EpochSampler(length, 4, epochs=3, start=start)
        spans = [number for number, begin, end in sampler.spans() for _ in range(begin, end)]
        assert spans == [number for number, _ in sampler]


# the index


def test_an_index_is_made_once_and_anew_for_a_shard_that_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: List[str] = []
    look = archives.look_into_shard
    monkeypatch.setattr(shard_index, "look_into_shard", lambda *a: looked.append(Path(a[0]).name) or look(*a))
    first = taken(opened(folder, tmp_path))
    assert len(looked) == 4
    assert taken(opened(folder, tmp_path)) == first and len(looked) == 4
    opened(folder, tmp_path, wds="json;img")
    assert len(looked) == 8, "other keys are other samples"
    opened(folder, tmp_path)
    write_shard(folder / "part" / "shard-002.tar", 2, 3)
    del looked[:]
    assert len(opened(folder, tmp_path)) == TOTAL + 2
    assert looked == ["shard-002.tar"]


def test_a_torn_index_is_made_anew(folder: Path, tmp_path: Path) -> None:
    first = taken(opened(folder, tmp_path))
    os.truncate(tmp_path / "run" / shard_index.INDEX, 100)
    assert taken(opened(folder, tmp_path)) == first


# what of them is used


def write_bad(path: Path) -> Path:
    """Five sound samples among others of every bad kind."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        add(archive, "folder", b"", type=tarfile.DIRTYPE)
        add(archive, "__meta__", b"of webdataset")
        for sample in range(3):
            add(archive, f"folder/good {sample}.img", picture(0, sample))
            add(archive, f"folder/good {sample}.cap", b"a caption")
        add(archive, "corrupt.img", picture(0, 100)[:60])
        add(archive, "corrupt.cap", b"a caption")
        add(archive, "no caption.img", picture(0, 101))
        add(archive, "no image.cap", b"a caption")
        add(archive, "empty image.img", b"")
        add(archive, "empty image.cap", b"a caption")
        add(archive, "empty caption.img", picture(0, 102))
        add(archive, "empty caption.cap", b"")
        add(archive, "blank caption.img", picture(0, 103))
        add(archive, "blank caption.cap", b" \n\n")
        add(archive, "no text.img", picture(0, 104))
        add(archive, "no text.cap", b"\xff\xfe\xff")
        add(archive, "link.img", b"", type=tarfile.SYMTYPE, linkname="folder/good 0.img")
        add(archive, "device.img", b"", type=tarfile.CHRTYPE)
        add(archive, "good 3.img", picture(0, 3))
        add(archive, "good 3.cap", b"a caption")
        add(archive, "good 3.img", picture(0, 105))
        add(archive, "GOOD 4.IMG", picture(0, 4))
        add(archive, "GOOD 4.CAP", b"a caption")
        add(archive, "notes.md", b"what nobody asked for")
    return path


BAD = {
    "unreadable image": 1, "image without captions": 1, "captions without image": 1, "empty image file": 1,
    "empty caption file": 2, "unreadable caption file": 1, "member that is no file": 2, "member that occurs twice": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["bad.tar", "bad.tar.gz"])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_unusable_is_left_out_and_counted_by_kind(tmp_path: Path, name: str, workers: int) -> None:
    report, shard = DataReport(), write_bad(tmp_path / name)
    dataset = opened(shard, tmp_path, report, texts=8, max_bad_share=0.9)
    engine = HostEngine(nn.Linear(1, 1), TrainingOptions(device="cpu", batch_size=2), IpuOptions(), workers)
    pictures = [n for batch in engine.loader(dataset, 0, 2) for _, inputs in batch for n in named(inputs)]
    assert set(pictures) == set(ALL[:5]) and len(pictures) == 2 * 8
    assert report.counts == BAD
    assert f"{shard}#no caption.img" in report.skipped


@pytest.mark.parametrize("name", ["bad.tar", "bad.tar.gz"])
def test_resuming_among_unusable_samples_gives_exactly_the_rest(tmp_path: Path, name: str) -> None:
    shard = write_bad(tmp_path / name)
    dataset = opened(shard, tmp_path, max_bad_share=0.9, wds="img")
    whole = taken(dataset, batch=1, epochs=3)
    for start in range(1, len(whole)):
        assert taken(dataset, batch=1, epochs=3, start=start) == whole[start:]


@pytest.mark.parametrize("name", ["bad.tar.gz", "uncounted"])
def test_a_stream_stops_above_the_bad_share_of_what_was_read(tmp_path: Path, name: str) -> None:
    options = {"epoch_samples": 20} if name == "uncounted" else {}
    dataset = opened(write_bad(tmp_path / "bad.tar.gz"), tmp_path, max_bad_share=0.1, texts=8, **options)
    engine = HostEngine(nn.Linear(1, 1), TrainingOptions(device="cpu"), IpuOptions(), 0)
    with pytest.raises(DataError, match="files .* were skipped, max_bad_share=0.1 allows 10.0%"):
        list(itertools.chain(*engine.loader(dataset, 0, 20)))


@pytest.mark.parametrize("extension", [".tar", ".tar.gz"])
def test_shards_without_a_usable_picture_are_an_error(tmp_path: Path, extension: str) -> None:
    shard = tmp_path / f"x{extension}"
    with tarfile.open(shard, "w:gz" if extension.endswith("gz") else "w") as archive:
        for sample in range(3):
            add(archive, f"{sample}.img", b"no picture")
    with pytest.raises(DataError, match="not one"):
        taken(opened(shard, tmp_path, max_bad_share=1, wds="img"), batch=1)


def test_keys_that_are_not_in_the_shards_are_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hold 0 samples under the keys jpg,.*name the keys that are in them"):
        opened(folder, tmp_path, wds="jpg")
    with pytest.raises(OptionError, match="wds=img names no key of captions"):
        opened(folder, tmp_path, wds="img", texts=8)


def truncated(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def overwritten(shard: Path) -> None:
    """Damage a header in the middle; tarfile takes it for the end."""
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        at = archive.getmember("0004.cap").offset
    content[at : at + 300] = b"\xaa" * 300
    shard.write_bytes(content)


def no_archive(shard: Path) -> None:
    shard.write_bytes(b"<html>not found</html>" * 100)


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage, left", [(truncated, 4), (overwritten, 3), (no_archive, 0), (empty, 0)])
def test_a_damaged_shard_gives_what_stands_before_the_damage_and_is_reported(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], left: int, packed: bool
) -> None:
    shard = folder / "part" / "shard-001.tar"
    damage(shard)
    if packed and damage is not empty:
        content = gzip.compress(shard.read_bytes())
        shard.unlink()
        shard = shard.with_suffix(".tar.gz")
        shard.write_bytes(content)
    report = DataReport()
    found = sorted(taken(opened(folder, tmp_path, report, max_bad_share=0.25), batch=1))
    assert [n for s, n in found if s == 1] == list(range(left))
    assert [name for name in found if name[0] != 1] == [name for name in ALL if name[0] != 1]
    assert report.counts == {"unreadable shard": 1} and report.skipped == [str(shard)]
    with pytest.raises(DataError, match=r"1 of 4 shards \(25.0%\) cannot be read .*shard-001.tar"):
        opened(folder, tmp_path, max_bad_share=0.2)


@pytest.fixture
def hurry() -> Iterator[None]:
    """Fails what would go on for ever."""

    def stop(*_: Any) -> None:
        raise AssertionError("still not through")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def claim(header: bytes, size: int) -> bytes:
    """A header that claims another size, in the form that has room for any."""
    field = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    header = header[:124] + field + header[136:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]


def header_of(**fields: Any) -> bytes:
    info = tarfile.TarInfo("0005.img")
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT)


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": "9"}


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        claim(header_of(), -512),
        claim(header_of(), -(2**80)),
        claim(header_of(), 2**40),
        claim(header_of(), 2**80),
        claim(header_of(type=tarfile.SYMTYPE), -1),
        claim(header_of(type=tarfile.GNUTYPE_LONGNAME), 2**62),
        claim(header_of(type=tarfile.XHDTYPE), 2**80),
        claim(header_of(type=tarfile.XHDTYPE), -512),
        header_of(pax_headers={"size": "-1024"}),
        header_of(pax_headers={"size": "9" * 30}),
        header_of(pax_headers=SPARSE, size=512) + b"no number".ljust(512, b"\0"),
        header_of(pax_headers={**SPARSE, "GNU.sparse.realsize": "x"}, size=512) + b"0\n".ljust(512, b"\0"),
        header_of(pax_headers={"comment": "x"}).replace(b"13 comment=", b"00 comment="),
    ],
)
def test_a_header_that_leads_tarfile_astray_ends_its_shard_and_is_reported(
    folder: Path, tmp_path: Path, damage: bytes, packed: bool
) -> None:
    shard = folder / "part" / "shard-001.tar"
    with tarfile.open(shard) as archive:
        at = archive.getmember("0005.cap").offset
    content = shard.read_bytes()
    shard.write_bytes(content[:at] + damage + content[at:])
    if packed:
        shard.with_suffix(".tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
        shard.unlink()
    report = DataReport()
    found = taken(opened(folder, tmp_path, report, max_bad_share=0.25), batch=1)
    whole = {n for s, n in found if s == 1}
    assert set(range(4)) <= whole <= set(range(5)), "what stands before the damage, without what it may belong to"
    assert {name for name in found if name[0] != 1} == {name for name in ALL if name[0] != 1}
    assert report.counts["unreadable shard"] == 1


def gone(shard: Path) -> None:
    shard.unlink()


def made_anew(shard: Path) -> None:
    """The same samples, each in another place."""
    with tarfile.open(shard, "w") as archive:
        for sample in reversed(range(COUNTS[1])):
            add(archive, f"{sample:04}.img", picture(1, sample))
            add(archive, f"{sample:04}.cap", f"shard 1, sample {sample}".encode())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", [gone, truncated, made_anew])
def test_samples_of_a_shard_that_changes_while_training_are_left_out_and_reported(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], workers: int
) -> None:
    report = DataReport()
    dataset = opened(folder, tmp_path, report, texts=30)
    change(folder / "part" / "shard-001.tar")
    engine = HostEngine(nn.Linear(1, 1), TrainingOptions(device="cpu", batch_size=1), IpuOptions(), workers)
    for batch in engine.loader(dataset, 0, 1):
        for text, image in batch:
            ((shard, number),) = named(image)
            assert bytes(text[0].tolist()).strip(b"\0").decode() == f"shard {shard}, sample {number}"
    assert set(report.counts) <= {"sample of a shard that changed after it was counted", "unreadable image"}
    assert len(report.skipped) >= COUNTS[1] // 2 and all("shard-001.tar#" in place for place in report.skipped)


@pytest.mark.parametrize("extension", [".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "name, header",
    [
        ("../evil.img", {}),
        ("a/../../evil.img", {}),
        ("/etc/evil.img", {}),
        ("..", {"type": tarfile.DIRTYPE}),
        ("..\\evil.img", {}),
        ("C:\\evil.img", {}),
        ("../link", {"type": tarfile.SYMTYPE, "linkname": "x"}),
    ],
)
def test_a_member_whose_name_leads_out_of_its_shard_is_refused_with_the_file_named(
    tmp_path: Path, extension: str, name: str, header: Dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "deep" / "er" / f"evil{extension}"
    shard.parent.mkdir(parents=True)
    with tarfile.open(shard, "w:gz" if extension.endswith("gz") else "w") as archive:
        add(archive, "fine.img", picture(0, 0))
        add(archive, "fine.cap", b"a caption")
        add(archive, name, b"" if header else picture(0, 1), **header)
    before = sorted(tmp_path.rglob("*"))
    for options in ({}, {"epoch_samples": 4}):
        with pytest.raises(DataError, match=rf"evil{extension} has the member .* leads out of the archive; .* refused"):
            taken(opened(shard, tmp_path, wds="img", max_bad_share=1, **options))
    assert check([str(shard), "--wds", "img,cap", "--workers", "1"]) == 1
    assert f"evil{extension} has the member" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before and not Path("/etc/evil.img").exists()


def test_names_with_dots_that_stay_inside_are_fine(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number, name in enumerate(("./a", "..b/c", "d..e/f", "...x/y", "__g__/h", "ü é/j k")):
            add(archive, f"{name}.img", picture(0, number))
    assert sorted(taken(opened(tmp_path / "x.tar", tmp_path, wds="img"), batch=1)) == [
        (0, number) for number in range(6)
    ]


# captions


@pytest.mark.parametrize(
    "key, text, captions",
    [
        ("cap", "one", ["one"]),
        ("txt", "one\n\n  two \r\n", ["one", "two"]),
        ("txt", "[noise] in brackets", ["[noise] in brackets"]),
        ("txt", "{curly", ["{curly"]),
        ("txt", "one\u2028line\x85 and\x0cso on\rtwo", ["one line and so on", "two"]),
        ("txt", "[" * 9999, ["[" * 9999]),
        ("json", '{"url": "x", "caption": "one"}', ["one"]),
        ("json", '{"caption": ["one", "two"]}', ["one", "two"]),
        ("json", '{"text": "one"}', ["one"]),
        ("json", '["one", "two"]', ["one", "two"]),
        ("json", '"one"', ["one"]),
        ("meta.json", '"one"', ["one"]),
        ("cap", '{"caption": "one"}', ["one"]),
        ("cap", '["one", "two"]', ["one", "two"]),
    ],
)
def test_captions_stand_as_lines_or_in_json(key: str, text: str, captions: List[str]) -> None:
    assert parse_captions(Member(f"0.{key}", key, 0, 1, text.encode())) == captions


@pytest.mark.parametrize(
    "text, kind",
    [
        ('{"caption": "", "text": "x"}', "empty caption file"),
        ('{"caption": null}', "empty caption file"),
        ("[]", "empty caption file"),
        ('{"url": "x"}', "unreadable caption file"),
        ("7", "unreadable caption file"),
        ("no json", "unreadable caption file"),
        ('{"caption": 7}', "empty caption file"),
        ('{"caption": ["one", 7]}', "empty caption file"),
        ("[" * 100000, "unreadable caption file"),
        ('{"caption":' * 100000, "unreadable caption file"),
    ],
)
def test_json_without_a_caption_is_refused_by_kind(text: str, kind: str) -> None:
    with pytest.raises(images.BadImage) as caught:
        parse_captions(Member("0.json", "json", 0, 1, text.encode()))
    assert caught.value.kind == kind


@pytest.mark.parametrize("extension", [".tar", ".tar.gz"])
def test_long_captions_are_cut_and_noted_or_refused_as_in_folders(tmp_path: Path, extension: str) -> None:
    shard = tmp_path / f"x{extension}"
    with tarfile.open(shard, "w:gz" if extension.endswith("gz") else "w") as archive:
        add(archive, "0.img", picture(0, 0))
        add(archive, "0.cap", b"twelve signs")
    report = DataReport()
    assert opened(shard, tmp_path, report, texts=5)[0][0].tolist() == [ord(letter) for letter in "twelv"]
    assert report.notes == {"image with a caption cut to text_seq_len": 1}
    with pytest.raises(DataError, match=r"a caption of .*#0.img has 12 tokens, text_seq_len=5"):
        opened(shard, tmp_path, texts=5, truncate_captions=False)[0]


def test_a_caption_without_tokens_gives_way_to_another(tmp_path: Path) -> None:
    class Deaf(LetterTokenizer):
        def encode(self, text: str) -> List[int]:
            return [] if text == "mute" else super().encode(text)

    report = DataReport()
    reader = CaptionReader(Deaf(), 4, report)
    for seed in range(10):
        assert reader.read(["mute", "x", "mute"], "place", random.Random(seed)).tolist() == [ord("x"), 0, 0, 0]
    with pytest.raises(images.BadImage, match="tokenise to nothing"):
        reader.read(["mute"], "place", random.Random(0))


@pytest.mark.parametrize("remembered, encoded", [(2, "a b c c c"), (9, "a b c")])
def test_a_caption_is_tokenised_once_as_long_as_there_is_room_for_its_ids(
    monkeypatch: pytest.MonkeyPatch, remembered: int, encoded: str
) -> None:
    asked: List[str] = []

    class Watched(LetterTokenizer):
        def encode(self, text: str) -> List[int]:
            asked.append(text)
            return super().encode(text)

    monkeypatch.setattr("data.shard_samples._REMEMBERED", remembered)
    reader = CaptionReader(Watched(), 4, DataReport())
    for caption in "abc" * 3:
        assert reader.read([caption], "place", random.Random(0)).tolist() == [ord(caption), 0, 0, 0]
    assert asked == encoded.split()


# beside training


@pytest.mark.parametrize("extension, second", [(".tar", "shard 1, sample 6"), (".tar.gz", "shard 1, sample 0")])
def test_validation_shards_give_their_samples_in_order_and_prompts(tmp_path: Path, extension: str, second: str) -> None:
    folder, report = write_shards(tmp_path / "shards", extension), DataReport()
    data = DataOptions(validation_folder=str(folder), wds="img,cap", byteio=True)
    texts = CaptionReader(LetterTokenizer(), 30, report)
    reader = SampleReader(PictureReader(data, 8, report, augment=False), texts)
    samples = open_validation_shards(data, reader, report, tmp_path / "run", 10)
    assert samples is not None
    assert [named(samples[n][1][None])[0] for n in range(10)] == ALL[:10]
    assert samples.prompts(2) == ["shard 0, sample 0", second], "spread over what is held"
    assert open_validation_shards(DataOptions(wds="img,cap"), reader, report, tmp_path, 10) is None


def test_the_check_describes_shards_and_what_would_be_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([str(folder), "--wds", "img,cap", "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["shards: 4", f"pairs: {TOTAL}"] and lines[-1] == "nothing would be skipped"
    assert "width in pixels: min 16, median 16, max 16" in lines
    write_bad(folder / "bad.tar.gz")
    assert check([str(folder), "--wds", "img,cap", "--workers", "2"]) == 1
    printed = capsys.readouterr().out
    assert f"pairs: {TOTAL + 5}" in printed
    assert all(f"skipped {count}: {kind}" in printed for kind, count in BAD.items())


# making them


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of seven pairs, some of equal names."""
    root = tmp_path / "pictures"
    for number in range(7):
        place = root / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number // 3}.png").write_bytes(picture(0, number))
        (place / f"{number // 3}.txt").write_text(f"picture {number}\nnumber {number}")
    return root


def made(pictures: Path, out: Path, *more: str) -> int:
    return make_shards(["--input-folder", str(pictures), "--out-dir", str(out), "--samples-per-shard", "3", *more])


def contents(folder: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_shards_made_of_a_folder_hold_all_its_pairs_equal_names_included(pictures: Path, tmp_path: Path) -> None:
    assert made(pictures, tmp_path / "out") == 0
    assert list(contents(tmp_path / "out")) == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    dataset = opened(tmp_path / "out", tmp_path, texts=20)
    assert len(dataset) == 7
    samples = {
        named(image[None])[0][1]: bytes(text.tolist()).decode().strip("\0")
        for text, image in map(dataset.__getitem__, range(7))
    }
    assert all(text in (f"picture {number}", f"number {number}") for number, text in samples.items())
    assert sorted(samples) == list(range(7))


def test_keys_are_written_as_they_will_be_read(pictures: Path, tmp_path: Path) -> None:
    assert made(pictures, tmp_path / "out", "--wds", ".PNG, .meta.txt") == 0
    assert len(opened(tmp_path / "out", tmp_path, texts=20, wds=".PNG,.meta.txt")) == 7


def test_making_shards_again_gives_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    assert made(pictures, tmp_path / "one") == made(pictures, tmp_path / "other") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_interrupted_making_goes_on_with_the_missing_shards_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(pictures, tmp_path / "whole") == 0

    def fail(file: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert made(pictures, tmp_path / "out") == 1
    assert contents(tmp_path / "out") == {}, "a shard that is not whole has not its name"
    assert made(pictures, tmp_path / "out") == 0
    (tmp_path / "out" / "shard-000001.tar").unlink()
    before = (tmp_path / "out" / "shard-000000.tar").stat().st_mtime_ns
    assert made(pictures, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out" / "shard-000000.tar").stat().st_mtime_ns == before


def test_shards_of_something_else_are_never_overwritten(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(pictures, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    (pictures / "a" / "0.txt").write_text("another caption")
    assert made(pictures, tmp_path / "out") == 1
    assert "holds shards of another dataset" in capsys.readouterr().err
    assert made(pictures, tmp_path / "out", "--wds", "jpg,txt") == 1
    assert contents(tmp_path / "out") == before


def test_wrong_arguments_of_making_shards_are_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(pictures, tmp_path / "out", "--samples-per-shard", "0") == 1
    assert "samples_per_shard=0 is below 1" in capsys.readouterr().err
    assert made(pictures, tmp_path / "out", "--wds", "img") == 1
    assert "wds=img is no pair of keys" in capsys.readouterr().err
    assert made(pictures, tmp_path / "out", "--wds", "img,IMG") == 1, "the captions would replace the image"
    assert "wds=img,IMG is no pair of keys" in capsys.readouterr().err


# options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"wds": "a,b,c"}, "wds=a,b,c has 3 keys"),
        (
            {"wds": "img,cap", "annotations": "x.json"},
            "annotations=x.json is for folders, and wds=img,cap reads shards",
        ),
        ({"wds": "img,cap", "validation_share": 0.1}, "validation_share=0.1 .*as validation_folder"),
    ],
)
def test_options_that_do_not_go_with_shards_are_refused_by_name(options: Dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DataOptions(**options)


def test_an_empty_wds_means_folders() -> None:
    assert DataOptions(wds="").wds == () and DataOptions(wds="img,cap").wds == ("img", "cap")  # type: ignore[arg-type]
