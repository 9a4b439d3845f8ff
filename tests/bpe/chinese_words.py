"""A small vocabulary in BERT's form, with the special words where bert-base-chinese has them."""

from __future__ import annotations

HAN = [chr(0x4E00 + 7 * n) for n in range(400)]
_ASCII = [chr(code) for code in range(33, 127)]
_ENGLISH = ["the", "a", "on", "two", "dog", "cat", "horse", "rid", "red", "\u00e9t\u00e9", "caf\u00e9", "don", "it"]
WORDS = [
    "[PAD]",
    *(f"[unused{n}]" for n in range(1, 100)),
    *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *_ASCII,
    *(f"##{letter}" for letter in _ASCII if letter.isalnum()),
    *("\u3001", "\u3002", "\uff0c", "\u00e9", "##\u00e9", "##s", "##ing", "##es", "##er"),
    *HAN,
    *(f"##{letter}" for letter in HAN[:50]),
    *_ENGLISH,
]
WORDS = list(dict.fromkeys(WORDS))
