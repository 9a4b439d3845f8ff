"""Random samples made on the host."""

from __future__ import annotations

import torch

from data.generated import GeneratedImages, GeneratedTextImages


def test_items_have_the_form_of_the_real_datasets_items() -> None:
    dataset = GeneratedTextImages(3, text_seq_len=5, vocab_size=7, image_size=4, byteio=False)
    assert len(dataset) == 3
    text, image = dataset[0]
    assert text.dtype == torch.int64 and text.shape == (5,)
    assert image.dtype == torch.float32 and image.shape == (3, 4, 4)
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert GeneratedImages(1, image_size=4, byteio=True)[0].dtype == torch.uint8


def test_captions_have_ids_below_the_vocabulary_s_size_then_padding() -> None:
    dataset = GeneratedTextImages(50, 6, 4, 1, byteio=True)
    texts = torch.stack([text for text, _ in map(dataset.__getitem__, range(50))])
    assert set(texts.flatten().tolist()) == {0, 1, 2, 3}
    assert bool((texts[:, 0] > 0).all())
    assert bool(((texts[:, 1:] == 0) | (texts[:, :-1] > 0)).all())


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    dataset = GeneratedImages(2, image_size=8, byteio=True)
    assert torch.equal(dataset[1], dataset[5, 1])
    assert not torch.equal(dataset[0], dataset[1])
    assert not torch.equal(dataset[0], GeneratedImages(2, image_size=8, byteio=True, seed=1)[0])
