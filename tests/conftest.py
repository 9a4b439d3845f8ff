"""What the tests of the commands share: a small dataset, and tiny runs of the commands within this process."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence

import pytest
import torch

import generate
import train
import train_clip
import train_vae
from bpe.train import train_vocabulary
from checkpoint import CheckpointFolder
from data import encode_images
from data.scenes import WORDINGS, Scene, all_scenes, caption, draw_scene

SIDE = 16  # pixels
TRAIN_SCENES, HELD_OUT_SCENES = 12, 4

RUN = {
    "engine": "host",
    "device": "cpu",
    "batch_size": 4,
    "max_steps": 3,
    "learning_rate": 3e-3,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "dataloader_workers": 0,
}
VAE = {
    "image_size": SIDE,
    "num_tokens": 16,
    "codebook_dim": 8,
    "num_layers": 2,
    "num_resnet_blocks": 0,
    "hidden_dim": 8,
}
DALLE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "dim_head": 8, "text_seq_len": 8}
CLIP = {
    "dim_text": 32,
    "dim_image": 32,
    "dim_latent": 32,
    "text_enc_depth": 1,
    "text_seq_len": 12,
    "text_heads": 2,
    "visual_enc_depth": 1,
    "visual_heads": 2,
    "visual_image_size": SIDE,
    "visual_patch_size": 4,
    "random_resize_crop_lower_ratio": 1,  # captions say where things are
}
CONFIGS = {
    "vae": {**RUN, **VAE},
    "dalle": {**RUN, **DALLE, "attn_types": "axial_row,full"},
    "clip": {**RUN, **CLIP},
}

torch.set_num_threads(1)


class Run:
    """What a training command left in its output folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.checkpoints = folder, CheckpointFolder(folder / "ckpt", kind)

    def log(self, event: str = "train") -> List[Dict[str, Any]]:
        """The lines of the log about an event."""
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]

    def series(self, name: str, event: str = "train") -> List[float]:
        """One scalar over the lines of the log."""
        return [line[name] for line in self.log(event)]

    def saved_steps(self) -> List[int]:
        """The steps that checkpoints were saved at."""
        return sorted(int(path.stem.split("_")[1]) for path in self.checkpoints.files())

    def state(self) -> Dict[str, Any]:
        """The contents of the newest checkpoint."""
        newest = self.checkpoints.newest()
        assert newest is not None, f"{self.folder} holds no checkpoint"
        return newest[1]


def as_arguments(options: Dict[str, Any]) -> List[str]:
    """Options as they are typed on a command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


@pytest.fixture(scope="session")
def run() -> Callable[..., None]:
    """Calls a command in this process: `run(train, max_steps=3)` is `python train.py --max-steps 3`."""

    def call(command: ModuleType, **options: Any) -> None:
        root = logging.getLogger()
        level, handlers = root.level, list(root.handlers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [f"{command.__name__}.py", *as_arguments(options)])
            try:
                command.main()
            finally:
                root.setLevel(level)
                root.handlers[:] = handlers

    return call


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures to train on and four held-out ones, in COCO's layout."""
    root, rng = tmp_path_factory.mktemp("scenes"), random.Random(0)
    chosen = rng.sample(all_scenes(), TRAIN_SCENES + HELD_OUT_SCENES)
    _draw_split(root, "train2017", chosen[:TRAIN_SCENES], rng)
    _draw_split(root, "val2017", chosen[TRAIN_SCENES:], rng)
    return root


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary that knows most words of the scenes."""
    path = tmp_path_factory.mktemp("bpe") / "vocabulary.json"
    captions = [caption(scene, wording) for scene in all_scenes() for wording in range(WORDINGS)]
    path.write_text(train_vocabulary(captions, 400), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entries `vae` and `dalle` that the tiny runs start from."""
    path = tmp_path_factory.mktemp("configs") / "configs.yml"
    path.write_text(json.dumps(CONFIGS))  # JSON is YAML
    return path


@pytest.fixture(scope="session")
def run_train_vae(run: Callable[..., None], configs: Path, scenes: Path) -> Callable[..., Run]:
    """Trains a tiny VAE into a folder: `run_train_vae(folder, **options)`."""

    def call(folder: Path, **options: Any) -> Run:
        given = {"config_file": configs, "config": "vae", "input_folder": scenes, "output_dir": folder, **options}
        run(train_vae, **given)
        return Run(folder, "vae")

    return call


@pytest.fixture(scope="session")
def vae(run_train_vae: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A VAE with which different codes are different pictures."""
    return run_train_vae(tmp_path_factory.mktemp("vae"), max_steps=150, learning_rate=1e-2, log_steps=50)


@pytest.fixture(scope="session")
def dalle_options(configs: Path, scenes: Path, vocabulary: Path, vae: Run) -> Dict[str, Any]:
    """What a tiny run of train.py is given beside its output folder."""
    return {
        "config_file": configs,
        "config": "dalle",
        "input_folder": scenes,
        "bpe_path": vocabulary,
        "vae_path": vae.folder,
    }


@pytest.fixture(scope="session")
def run_train(run: Callable[..., None], dalle_options: Dict[str, Any]) -> Callable[..., Run]:
    """Trains a tiny transformer into a folder: `run_train(folder, **options)`."""

    def call(folder: Path, **options: Any) -> Run:
        run(train, **{**dalle_options, "output_dir": folder, **options})
        return Run(folder, "dalle")

    return call


@pytest.fixture(scope="session")
def encode(run: Callable[..., None], scenes: Path, vocabulary: Path, vae: Run) -> Callable[..., Path]:
    """Encodes the scenes: `encode(folder, **options)` returns the folder."""

    def call(folder: Path, **options: Any) -> Path:
        given = {"input_folder": scenes, "bpe_path": vocabulary, "vae_path": vae.folder, "out_dir": folder}
        run(encode_images, **{**given, "device": "cpu", "batch_size": 4, "dataloader_workers": 0, **options})
        return folder

    return call


@pytest.fixture(scope="session")
def encoded(encode: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes, encoded in shards of five."""
    return encode(tmp_path_factory.mktemp("encoded") / "scenes", samples_per_shard=5)


@pytest.fixture(scope="session")
def dalle(run_train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A transformer that has learnt a little."""
    return run_train(tmp_path_factory.mktemp("dalle"), max_steps=150, log_steps=50, validation_steps=50)


@pytest.fixture(scope="session")
def run_train_clip(run: Callable[..., None], configs: Path, scenes: Path, vocabulary: Path) -> Callable[..., Run]:
    """Trains a tiny CLIP into a folder: `run_train_clip(folder, **options)`."""

    def call(folder: Path, **options: Any) -> Run:
        given = {"config_file": configs, "config": "clip", "input_folder": scenes, "bpe_path": vocabulary}
        run(train_clip, **{**given, "output_dir": folder, **options})
        return Run(folder, "clip")

    return call


@pytest.fixture(scope="session")
def clip(run_train_clip: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A CLIP that tells the training pictures apart."""
    folder = tmp_path_factory.mktemp("clip")
    return run_train_clip(folder, batch_size=TRAIN_SCENES, max_steps=160, log_steps=20, validation_steps=80)


@pytest.fixture
def draw(run: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Runs generate.py: `draw(checkpoint, prompts, **options)` returns the folder of the pictures."""

    def call(checkpoint: Path, text: str, **options: Any) -> Path:
        folder = tmp_path / f"drawn_{sum(1 for _ in tmp_path.iterdir())}"
        given = {
            "dalle_path": checkpoint,
            "text": text,
            "num_images": 1,
            "seed": 0,
            "outputs_dir": folder,
            "device": "cpu",
            "top_k": 0,  # of so few codes the usual share would leave one
        }
        run(generate, **{**given, **options})
        return folder

    return call


def _draw_split(root: Path, split: str, chosen: Sequence[Scene], rng: random.Random) -> None:
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, scene in enumerate(chosen):
        name = f"{number:04}.png"
        draw_scene(scene, SIDE, rng).save(root / split / name)
        images.append({"id": number, "file_name": name})
        annotations += [
            {"id": WORDINGS * number + wording, "image_id": number, "caption": caption(scene, wording)}
            for wording in range(WORDINGS)
        ]
    content = {"images": images, "annotations": annotations}
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
