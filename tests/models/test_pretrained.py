"""Pretrained image tokenizers: downloads that are cut off, damaged or refused; weights and configurations that fit."""

from __future__ import annotations

import hashlib
import http.server
import multiprocessing
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
import torch
import yaml
from torch import nn

from models import pretrained
from models.foreign import ForeignFileError
from models.openai_vae import OpenAIVAE
from models.pretrained import (
    RELEASED,
    NotAvailableError,
    PretrainedError,
    ReleasedFile,
    fetch,
    load_openai_vae,
    load_released,
    load_vqgan,
)
from models.vqgan import VQGan
from tests.models.pretrained_cases import OPENAI, VQGANS, fill_by_formula, pictures, save_as_taming

CONTENTS = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """Serves CONTENTS at every address, as a test wants it.

    Attributes:
        asked: the Range header of every request, "" for none.
        cut: bytes after which a connection is cut, one number a request; None or none left: not at all.
        ranges: whether it can send parts.
        content_type: what it says it sends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: List[str] = []
        self.cut: List[Optional[int]] = []
        self.ranges, self.content_type = True, "application/octet-stream"

    def file(self, sha256: Optional[str] = None) -> ReleasedFile:
        """What is to be had there."""
        return ReleasedFile("weights.ckpt", f"http://127.0.0.1:{self.server_address[1]}/f/?dl=1", sha256)


class Answer(http.server.BaseHTTPRequestHandler):
    """One answer of a `Site`."""

    server: Site

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked)
        start = int(asked[len("bytes=") : -1]) if asked and self.server.ranges else 0
        if start >= len(CONTENTS):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENTS) - start))
        self.send_header("Content-Type", self.server.content_type)
        self.end_headers()
        cut = self.server.cut.pop(0) if self.server.cut else None
        self.wfile.write(CONTENTS[start:] if cut is None else CONTENTS[start : start + cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once_and_its_checksum_recorded_beside_it(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {fetch(site.file(), tmp_path / "cache") for _ in range(3)}
    assert paths == {tmp_path / "cache" / "weights.ckpt"}
    assert (tmp_path / "cache" / "weights.ckpt").read_bytes() == CONTENTS
    assert (tmp_path / "cache" / "weights.ckpt.sha256").read_text() == f"{SHA256}  weights.ckpt\n"
    assert site.asked == [""]
    assert capsys.readouterr().err == ""  # progress is for terminals


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.cut = [300_000, 200_000]
    assert fetch(site.file(SHA256), tmp_path).read_bytes() == CONTENTS
    assert site.asked == ["", "bytes=300000-", "bytes=500000-"]
    assert not (tmp_path / "weights.ckpt.partial").exists()


def test_a_download_goes_on_at_the_next_call_where_the_last_one_gave_up(site: Site, tmp_path: Path) -> None:
    site.cut = [300_000, 0, 0, 0]
    with pytest.raises(NotAvailableError, match="cut off after 300000 bytes.*put it at .*weights.ckpt"):
        fetch(site.file(), tmp_path)
    assert not (tmp_path / "weights.ckpt").exists()
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENTS
    assert site.asked[-1] == "bytes=300000-"


def test_a_server_that_cannot_send_parts_sends_all_of_it_again(site: Site, tmp_path: Path) -> None:
    site.cut, site.ranges = [300_000], False
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENTS


def test_what_is_no_beginning_of_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "weights.ckpt.partial").write_bytes(CONTENTS + b"more")
    assert fetch(site.file(SHA256), tmp_path).read_bytes() == CONTENTS


def test_a_file_with_another_checksum_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=f"has sha256 {SHA256}, and {'0' * 64} is right"):
        fetch(site.file("0" * 64), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("published", [SHA256, None])
def test_a_file_that_was_damaged_after_its_download_is_refused(
    published: Optional[str], site: Site, tmp_path: Path
) -> None:
    path = fetch(site.file(published), tmp_path)
    path.write_bytes(CONTENTS[:-1])
    for offline in (False, True):
        with pytest.raises(PretrainedError, match="weights.ckpt is damaged.*Remove it"):
            fetch(site.file(published), tmp_path, offline)


def test_a_web_page_is_not_taken_for_the_file(site: Site, tmp_path: Path) -> None:
    site.content_type = "text/html; charset=utf-8"
    with pytest.raises(NotAvailableError, match="a web page came instead of the file"):
        fetch(site.file(), tmp_path)
    assert not (tmp_path / "weights.ckpt").exists()


def test_an_address_without_a_server_is_an_error_that_says_what_to_put_where(site: Site, tmp_path: Path) -> None:
    file = ReleasedFile("weights.ckpt", "http://127.0.0.1:1/weights")
    with pytest.raises(NotAvailableError, match=f"download {file.url} elsewhere and put it at {tmp_path}/weights.ckpt"):
        fetch(file, tmp_path)


def test_offline_uses_a_file_that_is_there_and_asks_for_none(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="weights.ckpt is not there, and offline is set; download http"):
        fetch(site.file(), tmp_path, offline=True)
    (tmp_path / "weights.ckpt").write_bytes(b"from elsewhere")
    assert fetch(site.file(), tmp_path, offline=True).read_bytes() == b"from elsewhere"
    assert site.asked == []


def test_several_processes_download_a_file_once(site: Site, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch, args=(site.file(SHA256), tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(site.asked) == 1


def write_vqgan(folder: Path, case: str, change: Optional[Callable[[Dict[str, Any]], None]] = None) -> VQGan:
    """Save a VQGAN as taming does, as weights.ckpt and config.yaml in `folder`."""
    model = VQGan(**VQGANS[case]).eval()
    fill_by_formula(model)
    save_as_taming(model, folder)
    if change:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        change(config)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return model


@pytest.mark.parametrize("case", VQGANS)
@torch.no_grad()
def test_a_vqgan_is_loaded_from_the_files_of_taming(case: str, tmp_path: Path) -> None:
    saved = write_vqgan(tmp_path, case)
    loaded = load_vqgan(tmp_path / "weights.ckpt", str(tmp_path / "config.yaml"))
    assert loaded.arguments == saved.arguments and not loaded.training
    codes = saved.encode(pictures(64))
    assert torch.equal(loaded.encode(pictures(64)), codes)
    assert torch.equal(loaded.decode(codes), saved.decode(codes))


def test_a_vqgan_is_loaded_from_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved = write_vqgan(tmp_path, "gumbel_f8_8192")
    save_file(saved.state_dict(), str(tmp_path / "weights.safetensors"))
    loaded = load_vqgan(tmp_path / "weights.safetensors", tmp_path / "config.yaml")
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in saved.state_dict().items())


def without(*keys: str) -> Callable[[Dict[str, Any]], None]:
    def change(config: Dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return change


def with_value(value: Any, *keys: str) -> Callable[[Dict[str, Any]], None]:
    def change(config: Dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


PARAMS = ("model", "params")
DDCONFIG = (*PARAMS, "ddconfig")


@pytest.mark.parametrize(
    "change, message",
    [
        (without("model"), "config.yaml has model.target=None, which is no VQGAN"),
        (with_value("taming.models.vqgan.Other", "model", "target"), "model.target=taming.models.vqgan.Other, which"),
        (without(*PARAMS), "config.yaml has no section params in model"),
        (without(*DDCONFIG), "config.yaml has no section ddconfig in model.params"),
        (without(*DDCONFIG, "ch_mult"), "config.yaml lacks ddconfig.ch_mult in model.params"),
        (without(*PARAMS, "n_embed"), "config.yaml lacks n_embed in model.params"),
        (with_value("wide", *DDCONFIG, "ch"), "config.yaml describes no VQGAN that can be built"),
        (with_value(33, *DDCONFIG, "ch"), "config.yaml describes no VQGAN that can be built"),
        (with_value(True, *DDCONFIG, "double_z"), "config.yaml: double_z"),
        (with_value(7, *PARAMS, "n_embed"), r"weights.ckpt is not .*embedding.weight \[64, 32\] for \[7, 32\]"),
        (with_value(3, *DDCONFIG, "num_res_blocks"), "weights.ckpt is not .*: it lacks encoder.down.*and 97 more"),
        (with_value(1, *DDCONFIG, "num_res_blocks"), "weights.ckpt is not .*: it has besides encoder.*and 97 more"),
        (with_value("a.GumbelVQ", "model", "target"), "lacks quantize.proj.weight.*has besides quantize.embedding"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused_by_name(
    change: Callable[[Dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    write_vqgan(tmp_path, "imagenet_f16_1024", change)
    with pytest.raises(PretrainedError, match=message):
        load_vqgan(tmp_path / "weights.ckpt", tmp_path / "config.yaml")


def test_a_configuration_with_object_tags_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    write_vqgan(tmp_path, "imagenet_f16_1024")
    marker = tmp_path / "something was run"
    with (tmp_path / "config.yaml").open("a") as config:
        config.write(f"\nextra: !!python/object/apply:os.system [\"touch '{marker}'\"]\n")
    with pytest.raises(PretrainedError, match="config.yaml is no plain YAML.*os.system.*nothing of it was run"):
        load_vqgan(tmp_path / "weights.ckpt", tmp_path / "config.yaml")
    assert not marker.exists()


@pytest.mark.parametrize("text", ["a: [1", "\x00"])
def test_a_configuration_that_is_no_yaml_is_refused_by_name(text: str, tmp_path: Path) -> None:
    write_vqgan(tmp_path, "imagenet_f16_1024")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(PretrainedError, match="config.yaml is no plain YAML"):
        load_vqgan(tmp_path / "weights.ckpt", tmp_path / "config.yaml")


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_vqgan(tmp_path, "imagenet_f16_1024")
    with pytest.raises(PretrainedError, match="absent.yaml cannot be read"):
        load_vqgan(tmp_path / "weights.ckpt", tmp_path / "absent.yaml")
    with pytest.raises(ForeignFileError, match="absent.ckpt cannot be read"):
        load_vqgan(tmp_path / "absent.ckpt", tmp_path / "config.yaml")


def test_a_file_of_something_else_is_no_vqgan(tmp_path: Path) -> None:
    write_vqgan(tmp_path, "imagenet_f16_1024")
    for contents in ([1, 2], {"state_dict": {"a": 1}}, {"hparams": {}}):
        torch.save(contents, tmp_path / "weights.ckpt")
        with pytest.raises(PretrainedError, match="weights.ckpt holds something else than named weights"):
            load_vqgan(tmp_path / "weights.ckpt", tmp_path / "config.yaml")


def write_openai(folder: Path, form: str, case: str = "one_block") -> OpenAIVAE:
    """Save OpenAI's VAE as encoder.pkl and decoder.pkl in `folder`: pickled modules, or state dicts."""
    vae = OpenAIVAE(**OPENAI[case]).eval()
    fill_by_formula(vae)
    for name, network in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        whole = nn.Module()  # a pickle may name modules of torch; what these are called does not matter
        whole.blocks = _as_modules_of_torch(network.blocks)
        contents = whole if form != "state dict" else network.state_dict()
        torch.save(contents, folder / f"{name}.pkl", _use_new_zipfile_serialization=form != "older format")
    return vae


def _as_modules_of_torch(module: nn.Module) -> nn.Module:
    """The same tree of parameters, in modules that the tests may pickle under a name of torch."""
    tree = nn.Module()
    for name, parameter in module.named_parameters(recurse=False):
        tree.register_parameter(name, parameter)
    for name, child in module.named_children():
        tree.add_module(name, _as_modules_of_torch(child))
    return tree


@pytest.mark.parametrize("form", ["zip format", "older format", "state dict"])
@torch.no_grad()
def test_openai_s_vae_is_loaded_from_its_two_files(form: str, tmp_path: Path) -> None:
    saved = write_openai(tmp_path, form)
    loaded = load_openai_vae(tmp_path / "encoder.pkl", str(tmp_path / "decoder.pkl"), saved.image_size)
    assert loaded.arguments == saved.arguments and not loaded.training
    assert {name: weight.sum() for name, weight in loaded.state_dict().items()} == {
        name: weight.sum() for name, weight in saved.state_dict().items()
    }
    assert torch.equal(loaded.encode(pictures(32)), saved.encode(pictures(32)))


def test_files_that_do_not_belong_together_are_no_openai_vae(tmp_path: Path) -> None:
    write_openai(tmp_path, "zip format")
    encoder, decoder = tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"
    with pytest.raises(PretrainedError, match="encoder.pkl is not the decoder that goes with .*encoder.pkl"):
        load_openai_vae(encoder, encoder)
    with pytest.raises(PretrainedError, match="decoder.pkl is not the encoder"):
        load_openai_vae(decoder, decoder)
    torch.save({"weight": torch.ones(1)}, decoder)
    with pytest.raises(PretrainedError, match="decoder.pkl holds no 'blocks.input.w'"):
        load_openai_vae(encoder, decoder)
    with pytest.raises(PretrainedError, match="decoder.pkl holds no 'blocks.input.w'"):
        load_openai_vae(decoder, encoder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of released files, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "dalle"
    folder.mkdir(parents=True)
    return folder


def test_files_that_dalle_pytorch_downloaded_are_used(cache: Path) -> None:
    write_openai(cache, "older format")
    vqgan = write_vqgan(cache, "imagenet_f16_1024")
    (cache / "weights.ckpt").rename(cache / "vqgan.1024.model.ckpt")
    (cache / "config.yaml").rename(cache / "vqgan.1024.config.yml")
    assert isinstance(load_released("openai", offline=True), OpenAIVAE)
    assert load_released("vqgan_f16_1024", offline=True).arguments == vqgan.arguments


@pytest.mark.parametrize("name", RELEASED)
def test_no_released_model_is_asked_for_offline(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("the network was touched"))
    with pytest.raises(NotAvailableError, match="offline is set; download https://"):
        load_released(name, offline=True)
