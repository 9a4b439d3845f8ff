"""Training a vocabulary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpe import train
from bpe.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
CAPTIONS = ["A dog and a cat.", "A cat on a mat", "Two dogs sit", "a bat at a vat", "Two rats, two hats"]


def text_file(root: Path) -> Path:
    path = root / "captions.txt"
    path.write_text("\n".join(CAPTIONS), encoding="utf-8")
    return path


def run(captions: Path, out: Path, *arguments: str) -> None:
    train.main(["--captions", str(captions), "--out", str(out), *arguments])


def test_the_same_captions_give_the_same_file_in_any_order_with_any_number_of_threads(tmp_path: Path) -> None:
    captions = [f"{caption} {n % 7} {n}" for n, caption in enumerate(CAPTIONS * 100)]
    written = set()
    for threads, ordered in (("1", captions), ("4", captions), ("4", captions[::-1])):
        source, out = tmp_path / "captions.txt", tmp_path / "out.json"
        source.write_text("\n".join(ordered))
        environment = dict(os.environ, PYTHONPATH=".", TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=threads)
        command = [sys.executable, "-m", "bpe.train", "--captions", str(source), "--out", str(out), "--vocab-size=400"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
        written.add(out.read_bytes())
    assert len(written) == 1


def test_the_vocabulary_has_padding_the_bytes_and_frequent_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(text_file(tmp_path), tmp_path / "out.json", "--vocab-size", "265")
    tokenizer = load_tokenizer(str(tmp_path / "out.json"))
    assert tokenizer.vocab_size == 265
    assert len(tokenizer.encode("a bat")) < len("a bat")
    assert tokenizer.decode(tokenizer.encode("\u732b \x00 Z")) == "\u732b \x00 z"
    assert sorted(os.listdir(tmp_path)) == ["captions.txt", "out.json"]
    assert "out.json: 265 ids of 265 asked for, from 5 captions; " in capsys.readouterr().out


def test_captions_with_few_pairs_give_a_smaller_vocabulary_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("dog")
    run(tmp_path / "few.txt", tmp_path / "out.json")
    assert "259 ids of 8192 asked for, from 1 captions; 1.00 tokens a caption" in capsys.readouterr().out


def test_a_coco_json_and_a_text_with_the_same_captions_give_the_same_vocabulary(tmp_path: Path) -> None:
    annotations = [{"id": n, "image_id": n, "caption": f" {text}\n"} for n, text in enumerate([*CAPTIONS, "  "])]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    run(tmp_path / "coco.json", tmp_path / "from_json.json", "--vocab-size", "280")
    run(text_file(tmp_path), tmp_path / "from_text.json", "--vocab-size", "280")
    assert (tmp_path / "from_json.json").read_bytes() == (tmp_path / "from_text.json").read_bytes()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"annotations": 1}', '{"annotations": [{}]}', '{"annotations": [{"caption": 1}]}']
)
def test_a_json_in_another_layout_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(SystemExit, match=r"--captions: .*bad\.json is unusable .*COCO's layout"):
        run(tmp_path / "bad.json", tmp_path / "out.json")
    assert os.listdir(tmp_path) == ["bad.json"]


@pytest.mark.parametrize("content, message", [(b"\xff\xff", "is unusable"), (b" \n", "without a caption")])
def test_a_text_without_readable_captions_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(SystemExit, match=rf"--captions: .*bad\.txt {message}"):
        run(tmp_path / "bad.txt", tmp_path / "out.json")


def test_wrong_arguments_are_errors_that_name_them(tmp_path: Path) -> None:
    captions = text_file(tmp_path)
    with pytest.raises(SystemExit, match="--captions: .*absent.txt"):
        run(tmp_path / "absent.txt", tmp_path / "out.json")
    with pytest.raises(SystemExit, match="--vocab-size 256 is below 257"):
        run(captions, tmp_path / "out.json", "--vocab-size", "256")
    with pytest.raises(SystemExit, match="--out: .*absent"):
        run(captions, tmp_path / "absent" / "out.json")


def test_a_run_that_is_killed_keeps_the_vocabulary_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    out.write_text("before")

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(text_file(tmp_path), out)
    assert out.read_text() == "before"
