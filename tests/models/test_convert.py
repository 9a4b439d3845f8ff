"""Converting checkpoints: other programs' files draw and train here, ours are written for DALLE-pytorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from PIL import Image

from bpe.tokenizer import load_tokenizer
from checkpoint import CheckpointError, find_checkpoint, load_text_to_image
from conversion import convert_dalle
from drawing import draw_pictures
from models.convert import main
from models.dalle import Dalle
from models.dalle_pytorch_format import FormatError, write_dalle, write_vae
from models.decoding import SamplingOptions
from models.image_tokenizer import TextToImage
from models.openai_vae import OpenAIVAE
from models.options import TokenizerOptions, TransformerOptions
from models.vae import DiscreteVAE
from models.vqgan import VQGan
from opening import open_text_to_image, open_vae
from options import OptionError, UserError
from tests.models.pretrained_cases import save_as_taming
from tests.models.test_graphcore_format import OPTIONS as GRAPHCORE
from tests.models.test_graphcore_format import make_file

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "dim_head": 12, "text_seq_len": 8}
PROMPT = "a small red circle"


@pytest.fixture(scope="module")
def words(vocabulary: Path) -> int:
    """Ids of the vocabulary."""
    return load_tokenizer(str(vocabulary)).vocab_size


def make_model(words: int, **options: Any) -> TextToImage:
    """A model that draws different pictures for different prompts."""
    torch.manual_seed(0)
    vae = DiscreteVAE(image_size=16, num_tokens=16, codebook_dim=4, num_layers=2, hidden_dim=4)
    dalle = Dalle(TransformerOptions(**{**SIZES, **options}), words, 16, vae.grid)
    torch.nn.init.normal_(dalle.to_logits.weight, std=0.5)
    return TextToImage(dalle, vae).eval()


def save_dalle_pt(model: TextToImage, path: Path) -> Dict[str, Any]:
    """What DALLE-pytorch would have saved of the model, with what only its training needs."""
    tokenizer, dalle = model.image_tokenizer, model.dalle
    description = {"kind": tokenizer.kind, "arguments": tokenizer.arguments}
    words = dalle.padding_start
    contents = write_dalle(dalle.options, words, dalle.layout, dalle.state_dict(), description, tokenizer.state_dict())
    contents.update(opt_state={"state": {}, "param_groups": [{"lr": 1e-3}]}, scheduler_state=None)
    torch.save(contents, path)
    return contents


def drawn(model: TextToImage, vocabulary: Path) -> torch.Tensor:
    tokenizer, sampling = load_tokenizer(str(vocabulary)), SamplingOptions(top_k=0.5)
    return draw_pictures(model, tokenizer, [PROMPT, "two"], [3, 4], sampling, 2).pictures


def convert(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


@pytest.mark.parametrize("options", [{}, {"rotary_emb": True, "shift_tokens": True, "attn_types": "axial_row,full"}])
def test_a_dalle_pt_becomes_a_checkpoint_that_draws_the_same(
    options: Dict[str, Any], words: int, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(words, **options)
    save_dalle_pt(model, tmp_path / "dalle.pt")
    convert("--from", tmp_path / "dalle.pt", "--to", tmp_path / "new" / "ours.pt", "--bpe-path", vocabulary)
    assert f"wrote {tmp_path / 'new' / 'ours.pt'}: the dalle of" in capsys.readouterr().out
    path, state = find_checkpoint(str(tmp_path / "new" / "ours.pt"), "dalle")
    again, tokenizer = load_text_to_image(state)
    assert tokenizer.identity == load_tokenizer(str(vocabulary)).identity
    assert torch.equal(drawn(again, vocabulary), drawn(model, vocabulary))


def test_generate_draws_with_a_dalle_pt_as_it_is(
    words: int, vocabulary: Path, tmp_path: Path, draw: Callable[..., Path]
) -> None:
    save_dalle_pt(make_model(words), tmp_path / "dalle.pt")
    convert("--from", tmp_path / "dalle.pt", "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary)
    folders = [
        draw(tmp_path / "dalle.pt", PROMPT, bpe_path=vocabulary),
        draw(tmp_path / "ours.pt", PROMPT),
    ]
    pictures = [sorted(folder.rglob("0.jpg")) for folder in folders]
    assert [len(found) for found in pictures] == [1, 1]
    assert pictures[0][0].read_bytes() == pictures[1][0].read_bytes()
    assert Image.open(pictures[0][0]).size == (16, 16)


def test_another_vocabulary_than_the_file_s_is_refused(words: int, vocabulary: Path, tmp_path: Path) -> None:
    save_dalle_pt(make_model(words + 3), tmp_path / "dalle.pt")
    with pytest.raises(FormatError, match=f"trained with {words + 3} text ids .* vocabulary has {words}; .*--bpe-path"):
        convert("--from", tmp_path / "dalle.pt", "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary)
    assert not (tmp_path / "ours.pt").exists()
    with pytest.raises(FormatError, match="text ids"):
        open_text_to_image(str(tmp_path / "dalle.pt"), TokenizerOptions(bpe_path=str(vocabulary)), "cpu")


def test_training_goes_on_from_converted_weights_with_a_fresh_optimizer(
    dalle: Any, run_train: Callable[..., Any], vocabulary: Path, tmp_path: Path
) -> None:
    first = dalle.state()
    convert("--from", dalle.checkpoints.files()[0], "--to", tmp_path / "dalle.pt", "--format", "dalle_pytorch")
    convert("--from", tmp_path / "dalle.pt", "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary)
    further = {"pretrained_checkpoint": tmp_path / "ours.pt", "max_steps": 3, "log_steps": 1, "vae_path": "none"}
    going_on = run_train(tmp_path / "going_on", ema_decay=0.9, **further)
    assert going_on.saved_steps() == [3]
    assert [line["step"] for line in going_on.log()] == [1, 2, 3]
    fresh = run_train(tmp_path / "fresh", max_steps=3, log_steps=1)
    assert going_on.series("loss")[0] < 0.7 * fresh.series("loss")[0]
    state, names = going_on.state(), set(first["weights"])
    assert set(state["weights"]) == names and state["optimizer"]
    # three steps of a decay that rises from 2 / 11 leave the average close to what training began from
    begun, ended = first["weights"]["dalle.norm.weight"], state["weights"]["dalle.norm.weight"]
    assert (state["average"]["weights"]["dalle.norm.weight"] - begun).norm() < 1.5 * (ended - begun).norm()


def test_ours_written_for_dalle_pytorch_and_read_again_is_the_same(
    dalle: Any, vocabulary: Path, tmp_path: Path
) -> None:
    convert("--from", dalle.checkpoints.files()[0], "--to", tmp_path / "dalle.pt", "--format", "dalle_pytorch")
    written = torch.load(tmp_path / "dalle.pt", weights_only=True)
    assert set(written) == {"hparams", "vae_params", "epoch", "version", "vae_class_name", "weights"}
    convert("--from", tmp_path / "dalle.pt", "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary)
    _, state = find_checkpoint(str(tmp_path / "ours.pt"), "dalle")
    first = dalle.state()
    assert state["transformer"] == first["transformer"]
    assert state["tokenizer_identity"] == first["tokenizer_identity"]
    different = [
        name
        for name, weight in first["weights"].items()
        if not torch.equal(state["weights"][name], weight) and not name.endswith("usage")  # which it does not count
    ]
    assert different == []


def test_names_for_the_axial_package_of_2022_are_written_on_request(dalle: Any, tmp_path: Path) -> None:
    for package, name in (("0.2", "image_pos_emb.weights_0"), ("0.3", "image_pos_emb.weights.0")):
        given = ("--from", dalle.checkpoints.files()[0], "--format", "dalle_pytorch", "--axial-package", package)
        convert(*given, "--to", tmp_path / f"{package}.pt")
        assert name in torch.load(tmp_path / f"{package}.pt", weights_only=True)["weights"]


def test_a_vae_pt_is_read_as_it_is_and_converted_there_and_back(vae: Any, tmp_path: Path) -> None:
    convert("--from", vae.checkpoints.files()[0], "--to", tmp_path / "vae.pt", "--format", "dalle_pytorch")
    assert set(torch.load(tmp_path / "vae.pt", weights_only=True)) == {"hparams", "weights", "version"}
    convert("--from", tmp_path / "vae.pt", "--to", tmp_path / "ours.pt")
    images = torch.rand(4, 3, 16, 16)
    first = open_vae(str(vae.folder))
    for again in (open_vae(str(tmp_path / "ours.pt")), open_vae(str(tmp_path / "vae.pt")), open_vae(str(vae.folder))):
        codes = first.encode(images)
        assert torch.equal(again.encode(images), codes)
        torch.testing.assert_close(again.decode(codes), first.decode(codes))


def test_a_checkpoint_of_taming_becomes_a_vae(tmp_path: Path) -> None:
    vqgan = VQGan(n_embed=7, embed_dim=4, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4)
    weights = {**vqgan.state_dict(), "loss.logvar": torch.zeros(())}
    torch.save({"epoch": 1, "state_dict": weights, "optimizer_states": []}, tmp_path / "last.ckpt")
    convert("--from", tmp_path / "last.ckpt", "--to", tmp_path / "ours.pt")
    again = open_vae(str(tmp_path / "ours.pt"))
    assert again.arguments == vqgan.arguments
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.encoder(images), vqgan.eval().encoder(images))


def test_a_configuration_says_what_the_weights_of_a_vqgan_do_not(tmp_path: Path) -> None:
    vqgan = VQGan(n_embed=7, embed_dim=4, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4,
                  resolution=32)  # fmt: skip
    torch.save({"state_dict": vqgan.state_dict()}, tmp_path / "last.ckpt")
    shape = "ch: 32, ch_mult: [1, 2], num_res_blocks: 1, attn_resolutions: [], z_channels: 4, resolution: 32"
    more = "double_z: false, in_channels: 3, out_ch: 3, dropout: 0.0"
    (tmp_path / "model.yaml").write_text(
        "model: {target: taming.models.vqgan.VQModel, params: {embed_dim: 4, n_embed: 7, "
        f"ddconfig: {{{shape}, {more}}}, lossconfig: {{target: x.Y}}}}}}\n"
    )
    given = ("--from", tmp_path / "last.ckpt", "--vqgan_config_path", tmp_path / "model.yaml")
    convert(*given, "--to", tmp_path / "ours.pt")
    assert open_vae(str(tmp_path / "ours.pt")).image_size == 32


def test_the_two_files_of_openai_become_a_vae(tmp_path: Path) -> None:
    vae = OpenAIVAE(n_hid=4, n_blk_per_group=1, vocab_size=9, n_init=4).eval()
    for half in ("encoder", "decoder"):
        torch.save(getattr(vae, half).state_dict(), tmp_path / f"{half}.pkl")
    convert("--from", tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", "--to", tmp_path / "ours.pt")
    again = open_vae(str(tmp_path / "ours.pt"))
    images = torch.rand(1, 3, 256, 256)
    assert torch.equal(again.encode(images), vae.encode(images))


def make_vqgan() -> VQGan:
    return VQGan(n_embed=13, embed_dim=4, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(),
                 z_channels=4)  # fmt: skip


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_of_graphcore_draws(
    named: bool, words: int, vocabulary: Path, tmp_path: Path, draw: Callable[..., Path]
) -> None:
    torch.manual_seed(0)
    vqgan, factor = make_vqgan(), next(n for n in range(2, 99) if (words + GRAPHCORE.text_seq_len) % n == 0)
    dalle = Dalle(GRAPHCORE, words, 13, vqgan.grid)
    contents = make_file(dalle, vqgan, splits=factor)
    contents["hparams"]["num_text_tokens"] = words
    torch.save(contents, tmp_path / "dalle_3.pt")
    convert("--from", tmp_path / "dalle_3.pt", "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary)
    _, state = find_checkpoint(str(tmp_path / "ours.pt"), "dalle")
    assert state["transformer"]["conv_window"] == "centered"
    assert state["image_tokenizer"]["kind"] == "VQGan"
    given: Dict[str, Any] = {"bpe_path": vocabulary} if named else {}
    folder = draw(tmp_path / ("dalle_3.pt" if named else "ours.pt"), PROMPT, **given)
    assert Image.open(next(folder.rglob("0.jpg"))).size == (256, 256)


def test_the_window_can_be_given_for_a_file_that_does_not_tell(words: int, vocabulary: Path) -> None:
    model = make_model(words, attn_types="conv_like")
    dalle = model.dalle
    description = {"kind": "DiscreteVAE", "arguments": model.image_tokenizer.arguments}
    contents = write_dalle(
        dalle.options, words, dalle.layout, dalle.state_dict(), description, model.image_tokenizer.state_dict()
    )
    tokenizer = load_tokenizer(str(vocabulary))
    assert convert_dalle(contents, tokenizer)["transformer"]["conv_window"] == "causal"
    assert convert_dalle(contents, tokenizer, conv_window="centered")["transformer"]["conv_window"] == "centered"


def test_an_image_tokenizer_can_be_named_for_a_file_without_one(words: int, vocabulary: Path, tmp_path: Path) -> None:
    model = make_model(words)
    contents = save_dalle_pt(model, tmp_path / "whole.pt")
    weights = {name: weight for name, weight in contents["weights"].items() if not name.startswith("vae.")}
    torch.save({**contents, "weights": weights}, tmp_path / "dalle.pt")
    vae = model.image_tokenizer
    torch.save(write_vae(vae.arguments, vae.state_dict()), tmp_path / "vae.pt")
    given = ["--from", tmp_path / "dalle.pt", "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary]
    with pytest.raises(FormatError, match="holds no image tokenizer; name it"):
        convert(*given)
    convert(*given, "--vae_path", tmp_path / "vae.pt")
    again, _ = load_text_to_image(find_checkpoint(str(tmp_path / "ours.pt"), "dalle")[1])
    assert torch.equal(drawn(again, vocabulary), drawn(model, vocabulary))
    other = DiscreteVAE(image_size=16, num_tokens=5, codebook_dim=4, num_layers=2, hidden_dim=4)
    torch.save(write_vae(other.arguments, other.state_dict()), tmp_path / "other.pt")
    given[given.index(tmp_path / "ours.pt")] = tmp_path / "again.pt"
    with pytest.raises(FormatError, match="has 5 codes, and the file's model was trained with 16"):
        convert(*given, "--vae_path", tmp_path / "other.pt")


@pytest.mark.parametrize("half", [False, True])
def test_an_image_tokenizer_that_is_named_beside_the_file_s_own_has_to_be_that_one(
    half: bool, words: int, vocabulary: Path, tmp_path: Path
) -> None:
    model = make_model(words)
    contents, vae = save_dalle_pt(model, tmp_path / "dalle.pt"), model.image_tokenizer
    if half:
        halves = {name: weight.half() for name, weight in contents["weights"].items()}
        torch.save({**contents, "weights": halves}, tmp_path / "dalle.pt")
    torch.save(write_vae(vae.arguments, vae.state_dict()), tmp_path / "vae.pt")
    torch.nn.init.normal_(vae.codebook.weight)  # type: ignore[arg-type, union-attr]
    torch.save(write_vae(vae.arguments, vae.state_dict()), tmp_path / "other.pt")
    named = {
        name: TokenizerOptions(bpe_path=str(vocabulary), vae_path=str(tmp_path / name))
        for name in ("vae.pt", "other.pt")
    }
    open_text_to_image(str(tmp_path / "dalle.pt"), named["vae.pt"], "cpu")
    with pytest.raises(FormatError, match="dalle.pt: the image tokenizer that is named is not the one in the file"):
        open_text_to_image(str(tmp_path / "dalle.pt"), named["other.pt"], "cpu")


def test_a_graphcore_user_s_command_names_the_vqgan_by_its_files(
    words: int, vocabulary: Path, tmp_path: Path, draw: Callable[..., Path]
) -> None:
    vqgan = make_vqgan()
    contents = make_file(Dalle(GRAPHCORE, words, 13, vqgan.grid), vqgan, half=True)
    contents["hparams"]["num_text_tokens"] = words
    torch.save(contents, tmp_path / "dalle_799.pt")
    save_as_taming(vqgan, tmp_path)
    files = {"vqgan_model_path": tmp_path / "weights.ckpt", "vqgan_config_path": tmp_path / "config.yaml"}
    folder = draw(tmp_path / "dalle_799.pt", PROMPT, bpe_path=vocabulary, **files)
    assert Image.open(next(folder.rglob("0.jpg"))).size == (256, 256)


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch it_ran",)


@pytest.mark.parametrize("opened", [open_text_to_image, open_vae, convert])
def test_a_file_that_names_something_to_run_is_refused_and_nothing_is_run(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"hparams": {}, "vae_params": _Runs(), "weights": {}}, "dalle.pt")
    arguments: List[Any] = {open_text_to_image: ["dalle.pt", TokenizerOptions(), "cpu"], open_vae: ["dalle.pt"]}.get(
        opened, ["--from", "dalle.pt", "--to", "ours.pt"]
    )
    with pytest.raises(UserError, match="dalle.pt names .*system"):
        opened(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dalle.pt"]


def test_errors_of_our_own_files_stay_what_they_are(vae: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_text_to_image(str(tmp_path / "none.pt"), TokenizerOptions(), "cpu")
    with pytest.raises(CheckpointError, match="holds a vae, and a dalle is needed"):
        open_text_to_image(str(vae.checkpoints.files()[0]), TokenizerOptions(), "cpu")
    torch.save({"format": 99, "kind": "vae"}, tmp_path / "vae_1.pt")
    with pytest.raises(CheckpointError, match="newer than"):
        open_vae(str(tmp_path / "vae_1.pt"))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (["--to", "x.pt"], OptionError, "checkpoint is not set; name the file to read with --from"),
        (["--from", "dalle.pt"], OptionError, "out is not set; .* the one to write with --to"),
        (["--from", "a,b,c", "--to", "x.pt"], OptionError, "names 3 files"),
        (["--from", "other.pt", "--to", "x.pt"], FormatError, "none that can be converted; give a dalle.pt"),
        (["--from", "wrong.pt", "--to", "x.pt"], FormatError, "weights are not those its parameters tell of"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    arguments: List[str], error: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}}, "other.pt")
    vae = DiscreteVAE(image_size=16, num_tokens=5, codebook_dim=4, num_layers=2, hidden_dim=4)
    contents = write_vae(vae.arguments, vae.state_dict())
    torch.save({**contents, "hparams": {**contents["hparams"], "num_tokens": 6}}, "wrong.pt")
    with pytest.raises(error, match=message):
        convert(*arguments)
    assert not Path("x.pt").exists()


def test_a_file_that_exists_is_never_written_over(vae: Any, tmp_path: Path) -> None:
    (tmp_path / "precious.pt").write_bytes(b"precious")
    for taken in ("precious.pt", "."):
        with pytest.raises(OptionError, match="out=.* exists already; remove it, or name another file"):
            convert("--from", vae.checkpoints.files()[0], "--to", tmp_path / taken)
    assert (tmp_path / "precious.pt").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["precious.pt"]


def test_a_checkpoint_of_ours_stays_one_that_is_read(dalle: Any, tmp_path: Path) -> None:
    convert("--from", dalle.checkpoints.files()[0], "--to", tmp_path / "ours.pt")
    _, state = find_checkpoint(str(tmp_path / "ours.pt"), "dalle")
    assert state.keys() == dalle.state().keys()


def test_clip_has_no_file_in_dalle_pytorch(clip: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a clip has no file in DALLE-pytorch's format"):
        convert("--from", clip.checkpoints.files()[0], "--to", tmp_path / "clip.pt", "--format", "dalle_pytorch")


EMPTY: Dict[str, Any] = {"hparams": {}, "vae_params": {}, "weights": {}}
NONSENSE: Dict[str, Any] = {
    "a dalle without weights": EMPTY,
    "a dalle of nothing": {"hparams": None, "vae_params": None, "weights": {}},
    "a vae without weights": {"hparams": {"num_tokens": 4}, "weights": {}},
    "a vae of nothing": {"hparams": None, "weights": None},
    "numbers for weights": {"state_dict": {"encoder.conv_in.weight": 1}},
    "a part of a vqgan": {"state_dict": {"encoder.conv_in.weight": torch.zeros(2, 3, 3, 3)}},
}


@pytest.mark.parametrize("contents", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_file_with_the_entries_of_a_checkpoint_and_other_contents_is_refused_in_one_line(
    contents: Any, vocabulary: Path, tmp_path: Path
) -> None:
    torch.save(contents, tmp_path / "it.pt")
    path, named = str(tmp_path / "it.pt"), TokenizerOptions(bpe_path=str(vocabulary))
    opened: List[Callable[[], Any]] = [
        lambda: convert("--from", path, "--to", tmp_path / "ours.pt", "--bpe-path", vocabulary),
        (lambda: open_text_to_image(path, named, "cpu")) if "vae_params" in contents else (lambda: open_vae(path)),
    ]
    for call in opened:
        with pytest.raises(FormatError, match="it.pt looks like a checkpoint, and cannot be read as one") as error:
            call()
        assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_told_in_one_line(words: int, vocabulary: Path, tmp_path: Path) -> None:
    contents = save_dalle_pt(make_model(words), tmp_path / "dalle.pt")
    contents["hparams"]["dim"] = 32
    torch.save(contents, tmp_path / "dalle.pt")
    with pytest.raises(FormatError, match="dalle.pt: .* differs in shape: text_embedding.weight .* more") as error:
        open_text_to_image(str(tmp_path / "dalle.pt"), TokenizerOptions(bpe_path=str(vocabulary)), "cpu")
    assert "\n" not in str(error.value)


def test_a_dalle_is_no_image_tokenizer(words: int, tmp_path: Path) -> None:
    save_dalle_pt(make_model(words), tmp_path / "dalle.pt")
    with pytest.raises(CheckpointError, match="dalle.pt holds a dalle, and a vae is needed"):
        open_vae(str(tmp_path / "dalle.pt"))


def test_training_from_a_dalle_pt_may_begin_to_leave_texts_out(
    dalle: Any, run_train: Callable[..., Any], vocabulary: Path, tmp_path: Path
) -> None:
    convert("--from", dalle.checkpoints.files()[0], "--to", tmp_path / "dalle.pt", "--format", "dalle_pytorch")
    new = {"null_cond_prob": 0.5, "ff_dropout": 0.1, "attn_dropout": 0.1, "loss_img_weight": 3}
    given = {"dalle_path": tmp_path / "dalle.pt", "vae_path": "none"}
    run = run_train(tmp_path / "run", **given, **new)
    assert {name: run.state()["transformer"][name] for name in new} == new
    with pytest.raises(
        CheckpointError, match="^hidden_size=24, attn_types=.*; use the latter: --hidden-size 16 --attn"
    ):
        run_train(tmp_path / "other", **given, hidden_size=24, attn_types="full")


def test_a_pretrained_image_tokenizer_has_no_file_of_its_own_in_dalle_pytorch(tmp_path: Path) -> None:
    torch.save({"state_dict": make_vqgan().state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(FormatError, match="a VQGan has no file in DALLE-pytorch's format"):
        convert("--from", tmp_path / "last.ckpt", "--to", tmp_path / "vae.pt", "--format", "dalle_pytorch")
