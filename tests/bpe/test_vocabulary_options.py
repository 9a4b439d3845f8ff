"""The options that name a vocabulary, in the commands that have them."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, Callable

import pytest

import generate
from bpe.tokenizer import HuggingFaceTokenizer, tokenizer_from_json
from checkpoint import CheckpointError
from data import check
from options import OptionError
from tests.bpe.chinese_words import WORDS

Train = Callable[..., Any]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A vocabulary of BERT."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of YouTokenToMe."""
    recorded = json.loads(Path(__file__).with_name("recorded_youtokentome.json").read_text(encoding="utf-8"))
    path = tmp_path / "bpe.model"
    path.write_text(recorded["model"], encoding="utf-8")
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, words: Path) -> None:
    """A hub that gives the vocabulary of BERT."""
    module = types.ModuleType("huggingface_hub")
    module.try_to_load_from_cache = lambda *_: str(words)  # type: ignore[attr-defined]
    module.hf_hub_download = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_run_with_a_youtokentome_model_is_resumed_and_drawn_without_the_file(
    run_train: Train, run: Callable[..., None], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    state = run_train(folder, bpe_path=model).state()
    assert tokenizer_from_json(state["tokenizer"]).vocab_size == 400
    run_train(folder, bpe_path=model, resume=True, max_steps=4)
    model.unlink()
    run_train(folder, bpe_path="none", resume=True, max_steps=5)
    run(generate, dalle_path=folder, text="a dog", num_images=1, outputs_dir=tmp_path / "drawn")
    assert (tmp_path / "drawn" / "a_dog").is_dir()


@pytest.mark.parametrize("from_hub", [False, True])
def test_chinese_trains_with_the_vocabulary_of_bert(
    run_train: Train, hub: None, words: Path, tmp_path: Path, from_hub: bool
) -> None:
    state = run_train(tmp_path / "run", bpe_path="none" if from_hub else words, chinese=True).state()
    tokenizer = tokenizer_from_json(state["tokenizer"])
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.encode("two dog") == [WORDS.index("two"), WORDS.index("dog")]
    with pytest.raises(CheckpointError, match=r"bpe_path=.*vocabulary\.json is not the vocabulary that the checkpoint"):
        run_train(tmp_path / "run", resume=True)  # with the vocabulary of the other tests


def test_chinese_is_refused_where_a_run_or_checkpoint_has_another_vocabulary(
    run_train: Train, run: Callable[..., None], hub: None, dalle: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="^chinese=True is not the vocabulary that the checkpoint"):
        run_train(tmp_path / "run", pretrained_checkpoint=dalle.folder, bpe_path="none", chinese=True)
    with pytest.raises(CheckpointError, match="^chinese=True is not the vocabulary that the checkpoint"):
        run(generate, dalle_path=dalle.folder, text="a dog", chinese=True)


def test_hug_is_refused_with_another_kind_of_vocabulary(
    run_train: Train, run: Callable[..., None], model: Path, dalle: Any, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"bpe_path=.*bpe\.model is no JSON, but hug=True"):
        run_train(tmp_path / "run", bpe_path=model, hug=True)
    with pytest.raises(OptionError, match=r"bpe_path=.*bpe\.model is no JSON, but hug=True"):
        run(generate, dalle_path=dalle.folder, text="a dog", bpe_path=model, hug=True)


def test_hug_admits_a_hugging_face_json(run_train: Train, tmp_path: Path) -> None:
    assert run_train(tmp_path / "run", hug=True).series("step") == [1, 2, 3]


def test_the_check_of_a_dataset_counts_tokens_in_each_kind_of_vocabulary(
    scenes: Path, words: Path, model: Path, hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokens(*arguments: object) -> str:
        check.main([str(scenes), "--workers", "1", *map(str, arguments)])
        return next(line for line in capsys.readouterr().out.splitlines() if "tokens" in line)

    named, from_file = tokens("--chinese"), tokens("--chinese", "--bpe-path", words)
    assert named == from_file != tokens("--bpe-path", model)
