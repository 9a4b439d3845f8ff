"""Checkpoints: whole or absent, found again, and never run."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from torch import nn

import checkpoint
from args import read_settings
from bpe.tokenizer import HuggingFaceTokenizer, load_tokenizer
from bpe.train import train_vocabulary
from checkpoint import (
    CheckpointError,
    CheckpointFolder,
    check_same_model,
    describe_text_to_image,
    describe_vae,
    find_checkpoint,
    identity,
    inference_weights,
    load_text_to_image,
    read_checkpoint,
    write_atomically,
)
from models.dalle import Dalle
from models.image_tokenizer import TextToImage
from models.options import TransformerOptions
from models.vae import DiscreteVAE
from opening import open_vae
from options import UserError

VOCABULARY = Path(__file__).resolve().parent.parent / "bpe" / "coco8192.json"
STATE = {"weights": {"a": torch.arange(1000.0)}, "average": None}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Holds the checkpoints of steps 900 and 1000."""
    folder = CheckpointFolder(tmp_path / "ckpt", "dalle")
    for step in (900, 1000):
        folder.save(step, {**STATE, "step": step})
    return folder


def names(folder: CheckpointFolder) -> List[str]:
    return [path.name for path in folder.files()]


def make_vae() -> DiscreteVAE:
    return DiscreteVAE(image_size=8, num_tokens=16, codebook_dim=4, num_layers=1, hidden_dim=4)


class Payload:
    """Unpickles as the outcome of a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Tuple[Callable[[str], int], Tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_the_newest_is_found_by_number_with_all_it_holds(folder: CheckpointFolder) -> None:
    path, state = folder.newest()  # type: ignore[misc]
    assert names(folder) == ["dalle_1000.pt", "dalle_900.pt"]
    assert (path.name, state["step"]) == ("dalle_1000.pt", 1000)
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]


def test_files_of_other_names_and_kinds_are_passed_over(folder: CheckpointFolder) -> None:
    CheckpointFolder(folder.folder, "vae").save(2000, STATE)
    for name in ("dalle_best.pt", "dalle_3000.pt.partial", "my_dalle_3000.pt", "dalle_-3000.pt"):
        (folder.folder / name).write_bytes(b"something")
    assert names(folder) == ["dalle_1000.pt", "dalle_900.pt"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "ckpt").mkdir()
    assert CheckpointFolder(tmp_path / "ckpt", "dalle").newest() is None


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999], ids=lambda share: f"{share:.1%} written")
def test_a_torn_newest_file_is_passed_over(folder: CheckpointFolder, share: float) -> None:
    torn = folder.files()[0]
    content = torn.read_bytes()
    torn.write_bytes(content[: int(share * len(content))])
    assert folder.newest()[0].name == "dalle_900.pt"  # type: ignore[index]
    with pytest.raises(CheckpointError, match="dalle_1000.pt"):
        read_checkpoint(torn, "dalle")


@pytest.mark.parametrize("garbage", [b"\x00" * 4096, b"not a checkpoint", bytes(range(256)) * 16])
def test_garbage_under_the_newest_name_is_passed_over(folder: CheckpointFolder, garbage: bytes) -> None:
    folder.files()[0].write_bytes(garbage)
    assert folder.newest()[0].name == "dalle_900.pt"  # type: ignore[index]


def test_a_folder_of_torn_files_is_an_error_that_names_each(folder: CheckpointFolder) -> None:
    for path in folder.files():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="holds no whole checkpoint: .*dalle_1000.pt .*dalle_900.pt "):
        folder.newest()


@pytest.mark.parametrize("keep, kept", [(0, [100, 20, 3]), (1, [100]), (2, [100, 20]), (5, [100, 20, 3])])
def test_only_the_newest_few_are_kept(tmp_path: Path, keep: int, kept: List[int]) -> None:
    folder = CheckpointFolder(tmp_path, "dalle", keep)
    CheckpointFolder(tmp_path, "vae").save(1, STATE)
    for step in (3, 20, 100):
        folder.save(step, STATE)
    assert names(folder) == [f"dalle_{step}.pt" for step in kept]
    assert (tmp_path / "vae_1.pt").exists()


def test_what_a_killed_save_left_is_removed_by_the_next(folder: CheckpointFolder) -> None:
    (folder.folder / "dalle_1100.pt.partial").write_bytes(b"half")
    folder.save(1200, STATE)
    assert sorted(os.listdir(folder.folder)) == ["dalle_1000.pt", "dalle_1200.pt", "dalle_900.pt"]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(state: Dict[str, Any], file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    path = tmp_path / "dalle_1.pt"
    write_atomically(path, STATE)
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, STATE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["dalle_1.pt"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: List[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda number: (events.append("flush"), fsync(number)))
    monkeypatch.setattr(checkpoint.os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    write_atomically(tmp_path / "dalle_1.pt", STATE)
    assert events == ["flush", "rename", "flush"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"format": 1, "kind": "vae"}, "holds a vae, and a dalle is needed here; give another file"),
        ({"format": 2, "kind": "dalle"}, "has format 2, newer than 1; use a newer program"),
        ({"weights": {}}, "is no checkpoint of this program; give one that train.py or train_vae.py wrote"),
        ({"format": 1}, "is no checkpoint of this program"),
        ({"format": "zip", "kind": "dalle"}, "is no checkpoint of this program"),
        ([1, 2], "is no checkpoint of this program"),
        (torch.zeros(3), "is no checkpoint of this program"),
    ],
)
def test_a_file_of_another_kind_origin_or_time_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=f"file.pt {message}"):
        read_checkpoint(tmp_path / "file.pt", "dalle")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_names_something_to_run_is_refused_and_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "dalle_1.pt"
    state = {"format": 1, "kind": "dalle", "weights": Payload(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="dalle_1.pt names .*system, which is no tensor or plain container"):
        read_checkpoint(path, "dalle")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file does nothing at all"


@pytest.mark.parametrize("place", ["ckpt/dalle_900.pt", "ckpt", "."])
def test_a_file_its_folder_and_the_folder_of_the_run_are_all_accepted(folder: CheckpointFolder, place: str) -> None:
    path, state = find_checkpoint(str(folder.folder.parent / place), "dalle")
    assert state["step"] == (900 if place.endswith(".pt") else 1000)
    assert path == folder.folder / f"dalle_{state['step']}.pt"


@pytest.mark.parametrize("place, message", [("ckpt/dalle_1.pt", "does not exist"), (".", "holds no dalle_<step>.pt")])
def test_a_place_without_a_checkpoint_is_an_error_that_names_it(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}.*{message}"):
        find_checkpoint(str(tmp_path / place), "dalle")


def test_averaged_weights_stand_in_for_those_that_have_an_average() -> None:
    weights = {"learned": torch.zeros(2), "frozen": torch.ones(2)}
    average = {"step": 3, "weights": {"learned": torch.full((2,), 5.0)}}
    drawn = inference_weights({"weights": weights, "average": average})
    assert {name: tensor.tolist() for name, tensor in drawn.items()} == {"learned": [5, 5], "frozen": [1, 1]}
    assert weights["learned"].tolist() == [0, 0]
    assert inference_weights({"weights": weights, "average": None}) == weights


@pytest.mark.parametrize("averaged", [False, True])
def test_a_saved_image_tokenizer_is_read_back_to_draw_with(tmp_path: Path, averaged: bool) -> None:
    vae, average = make_vae(), make_vae()
    state = {**describe_vae(vae), "weights": vae.state_dict(), "average": None}
    if averaged:
        state["average"] = {"step": 1, "weights": dict(average.named_parameters())}
    CheckpointFolder(tmp_path, "vae").save(1, copy.deepcopy(state))
    read = open_vae(str(tmp_path))
    assert not read.training
    assert identity(read) == identity(average if averaged else vae)


def test_a_saved_model_needs_nothing_but_its_checkpoint(tmp_path: Path) -> None:
    tokenizer, vae = load_tokenizer(str(VOCABULARY)), make_vae()
    options = TransformerOptions(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, dim_head=4, text_seq_len=3)
    dalle = Dalle(options, tokenizer.vocab_size, vae.num_tokens, vae.grid)
    model = TextToImage(dalle, vae)
    plain = {**dataclasses.asdict(options), "attn_types": list(options.attn_types)}
    described = describe_text_to_image(model, plain, tokenizer)
    CheckpointFolder(tmp_path, "dalle").save(1, {**described, "weights": model.state_dict(), "average": None})
    read, words = load_text_to_image(find_checkpoint(str(tmp_path), "dalle")[1])
    assert not read.training
    assert identity(read) == identity(model)
    assert read.dalle.options == options
    assert words.identity == tokenizer.identity
    assert described["image_tokenizer_identity"] == identity(vae)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_size": 16}, "hidden_size=16, but the checkpoint was trained with hidden_size=8; use the latter"),
        ({"attn_types": ("full",)}, "attn_types=.'full'., but .* attn_types=.'axial_row', 'full'.; use the latter"),
    ],
)
def test_another_model_than_the_checkpoints_is_refused_by_the_option_that_differs(
    options: Dict[str, Any], message: str
) -> None:
    saved = {"hidden_size": 8, "attn_types": ("axial_row", "full")}
    own = dataclasses.asdict(TransformerOptions(**saved))  # type: ignore[arg-type]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    check_same_model(TransformerOptions(**saved), plain)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        check_same_model(TransformerOptions(**{**saved, **options}), plain)


def test_all_options_that_differ_are_named_at_once_with_what_to_type() -> None:
    saved = {
        "hidden_size": 8,
        "attn_types": ["axial_row", "full"],
        "reversible": True,
        "shared_attn_ids": None,
        "ff_dropout": 0.1,
    }
    options = TransformerOptions(hidden_size=16, stable=True, shared_attn_ids=("a",), ff_dropout=0.2)
    with pytest.raises(CheckpointError) as error:
        check_same_model(options, saved, free=("ff_dropout",))
    here, there = str(error.value).split(", but the checkpoint was trained with ")
    assert here == "hidden_size=16, attn_types=['full'], reversible=False, stable=True, shared_attn_ids=['a']"
    typed = there.split("; use the latter: ")[1]
    assert typed == "--hidden-size 8 --attn-types axial_row,full --reversible --no-stable --shared-attn-ids none"
    words = [*typed.split(), "--ff-dropout", "0.2"]
    typed_options = read_settings("Try.", [TransformerOptions], words)[TransformerOptions]
    check_same_model(typed_options, saved, free=("ff_dropout",))


def test_a_checkpoint_of_a_newer_program_is_refused_by_the_option_that_is_new(tmp_path: Path) -> None:
    vae = DiscreteVAE(image_size=8, num_tokens=4, codebook_dim=2, num_layers=1, hidden_dim=2)
    text = {"tokenizer": HuggingFaceTokenizer(train_vocabulary(["a"], 260)).to_json()}
    image = describe_vae(vae)
    with pytest.raises(CheckpointError, match="trained with the option newest, unknown here; use a newer program"):
        load_text_to_image({**text, **image, "transformer": {"newest": 1}})
    with pytest.raises(UserError, match="image tokenizer 'newest' is none of .*; use a newer program"):
        load_text_to_image({**text, "image_tokenizer": {"kind": "newest"}, "transformer": {}})


def test_the_identity_differs_when_a_single_weight_or_its_name_does() -> None:
    layer, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    assert identity(twin) == identity(layer)
    assert identity(nn.ModuleDict({"a": layer})) != identity(nn.ModuleDict({"b": layer}))
    with torch.no_grad():
        twin.weight[1, 2] += 1e-6
    assert identity(twin) != identity(layer)


def test_the_identity_does_not_depend_on_how_weights_lie_in_memory() -> None:
    layer = nn.Conv2d(3, 4, 2)
    before = identity(layer)
    assert identity(layer.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
