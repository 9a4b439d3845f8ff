"""Looking a dataset over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List

import pytest
from PIL import Image

from data.captions import Pair
from data.check import describe_tokens, main


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three sound pairs, of which two have equal pictures."""
    for n, width in enumerate((10, 20, 40)):
        Image.effect_noise((width, 16), 90).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text(f"caption {n}\nthe same")
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    return tmp_path


def test_a_clean_dataset_gives_status_0_and_its_numbers(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset), "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pairs: 3",
        "captions: 6, an image min 2, median 2, max 2",
        "captions that repeat an earlier one: 2",
        "width in pixels: min 10, median 10, max 40",
        "height in pixels: min 16, median 16, max 16",
        "images that repeat an earlier one: 1",
        "nothing would be skipped",
    ]


def test_what_training_would_skip_gives_status_1_and_is_listed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "0.png").write_text("no picture")
    (dataset / "1.txt").unlink()
    assert main([str(dataset), "--workers", "2", "--report", str(tmp_path / "bad.jsonl")]) == 1
    printed = capsys.readouterr().out
    assert "skipped 1: unreadable image" in printed
    assert "skipped 1: image without captions" in printed
    assert "0.png" in (tmp_path / "bad.jsonl").read_text()


def test_a_folder_without_pairs_gives_status_1_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "0 images, 0 caption files" in capsys.readouterr().err


class LetterTokenizer:
    """As many tokens as letters."""

    def encode(self, text: str) -> List[int]:
        return [1] * len(text)

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        return [self.encode(text) for text in texts]


def test_the_histogram_counts_every_caption_and_the_share_over_the_limit() -> None:
    captions = ["x" * length for length in (1, 2, 3, 25, 25, 49, 49, 49)]
    lines = describe_tokens([Pair(Path("x.png"), tuple(captions))], LetterTokenizer(), text_seq_len=40)
    rows = [line.split() for line in lines[1:-1]]
    assert [(row[0], int(row[1])) for row in rows if int(row[1])] == [("0-4", 3), ("25-29", 2), ("45-49", 3)]
    assert len(rows) == 10
    assert lines[0] == "tokens a caption: min 1, median 25, max 49"
    assert lines[-1] == "captions over text_seq_len=40: 3 of 8 (37.5%)"
