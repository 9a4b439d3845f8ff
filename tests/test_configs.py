"""The named configurations."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List

import pytest
import yaml

import train
import train_clip
import train_vae
from args import CONFIGS, read_settings
from log import LogOptions

ENTRIES: List[str] = list(yaml.safe_load(CONFIGS.read_text(encoding="utf-8")))
COMMANDS: Dict[str, ModuleType] = {"demo_vae": train_vae, "clip": train_clip}  # of the others: train

ROW, COL, FULL = "axial_row", "axial_col", "full"
L16_ATTENTION = [ROW, ROW, COL, ROW, ROW, ROW, COL, ROW, ROW, ROW, COL, FULL, ROW, ROW, COL, FULL]

# Graphcore's configurations, option by option: what all have, what the L16 family has, what each has of its own.
SHARED: Dict[str, Any] = {
    "input_folder": "./data/COCO",
    "dataloader_workers": 4,
    "loss_img_weight": 7,
    "text_seq_len": 80,
    "truncate_captions": True,
    "wandb": False,
    "device_iterations": 1,
    "optimizer": "Adam",
    "dim_head": 64,
    "ff_dropout": 0,
    "attn_dropout": 0,
}
FAMILY: Dict[str, Any] = {
    **SHARED,
    "hidden_size": 512,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "attn_types": L16_ATTENTION,
    "ipus_per_replica": 4,
    "stochastic_rounding": True,
    "enable_half_partials": True,
    "enable_half_first_order_momentum": True,
    "fp16": True,
}
L16: Dict[str, Any] = {
    **FAMILY,
    "batch_size": 2,
    "epochs": 800,
    "replication_factor": 1,
    "gradient_accumulation": 8192,
    "layers_per_ipu": [0, 6, 6, 4],
    "embedding_serialization_factor": 4,
    "enable_rts": False,
    "matmul_proportion": [0.6],
    "learning_rate": 5e-3,
    "lr_scheduler": "multi_step",
    "loss_scaling": 32768,
    "sandwich_norm": False,
    "bpe_path": "bpe/coco8192.json",
}
POD16 = {**L16, "replication_factor": 4, "gradient_accumulation": 2048, "enable_rts": True, "dataloader_workers": 64}
TABLE: Dict[str, Dict[str, Any]] = {
    "L16": L16,
    "L16_POD16": POD16,
    "L16_POD64": {**POD16, "replication_factor": 16, "gradient_accumulation": 512, "loss_scaling": 16384},
    "L16_CLIP_vocab": {
        **FAMILY,
        "batch_size": 1,
        "epochs": 200,
        "replication_factor": 1,
        "gradient_accumulation": 15,
        "layers_per_ipu": [0, 7, 7, 2],
        "embedding_serialization_factor": 8,
        "enable_rts": False,
        "matmul_proportion": [0.2],
        "learning_rate": 3e-4,
        "lr_scheduler": "ReduceLROnPlateau",
        "loss_scaling": 16384,
        "sandwich_norm": True,
        "bpe_path": None,
    },
    "unit_test": {
        **SHARED,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "attn_types": [ROW],
        "ipus_per_replica": 1,
        "stochastic_rounding": False,
        "enable_half_partials": False,
        "enable_half_first_order_momentum": False,
        "fp16": False,
        "batch_size": 1,
        "epochs": 1,
        "replication_factor": 1,
        "gradient_accumulation": 2,
        "layers_per_ipu": [1],
        "embedding_serialization_factor": 1,
        "enable_rts": False,
        "matmul_proportion": [0.6],
        "learning_rate": 3e-4,
        "lr_scheduler": "ReduceLROnPlateau",
        "loss_scaling": 1,
        "sandwich_norm": False,
        "bpe_path": "bpe/coco8192.json",
    },
}

GRAPHCORE_YAML = """
defaults: &defaults
  # Data
  input_folder: ./data/COCO
  dataloader_workers: 4
  synthetic_data: False
  generated_data: False
  byteio: True
  truncate_captions: True
  vae_path:
  vqgan_model_path:
  vqgan_config_path:
  # Optimizer
  loss_img_weight: 7
  lr_scheduler: ReduceLROnPlateau
  weight_decay: 0.0
  enable_als: off
  # Misc
  wandb: False
  wandb_project_name: miniDALL-E
  wandb_run_name:
  pretrained_checkpoint:
  checkpoint_output_dir: ""
  checkpoint_save_steps: 1000
  compile_only: False
  executable_cache_dir:
  profile_dir:
  random_seed: 42

mine:
  <<: *defaults
  batch_size: 6
  epochs: 2
  ipus_per_replica: 4
  layers_per_ipu: [0, 7, 7, 2]
  matmul_proportion: [0.15, 0.3, 0.3, 0.2]
  cls_ipu_id:
  embedding_ipu_id: 0
  optimizer_state_offchip: False
  async_dataloader: True
  learning_rate: 3e-4
  loss_scaling: 16384
  attn_types: "axial_row,axial_col,\\
    full"
"""


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_understood_by_its_command(entry: str) -> None:
    command = COMMANDS.get(entry, train)
    read_settings("Try.", command.GROUPS, ["--config", entry])


@pytest.mark.parametrize("entry", TABLE)
def test_the_configurations_of_graphcore_have_graphcores_values(entry: str) -> None:
    settings = read_settings("Try.", train.GROUPS, ["--config", entry]).as_dict()
    assert {name: settings[name] for name in TABLE[entry]} == TABLE[entry]


@pytest.mark.parametrize("entry", TABLE)
def test_checkpoints_lie_where_graphcore_s_do_and_move_with_the_output_folder(entry: str) -> None:
    for words, folder in (((), "output/ckpt"), (("--output-dir", "runs"), "runs/ckpt")):
        settings = read_settings("Try.", train.GROUPS, ["--config", entry, *words])
        assert settings[LogOptions].checkpoint_folder == Path(folder)


def test_the_entry_of_dalle_pytorch_has_the_defaults_of_its_train_dalle() -> None:
    model = "--dim 512 --depth 2 --heads 8 --dim_head 64 --text_seq_len 256 --attn_types full --loss_img_weight 7"
    steps = "--epochs 20 --batch_size 4 --ga_steps 1 --learning_rate 3e-4 --lr-scheduler constant --warmup-steps 0"
    rest = "--clip_grad_norm 0.5 --save_every_n_steps 1000 --random_resize_crop_lower_ratio 0.75"
    typed = read_settings("Try.", train.GROUPS, f"{model} {steps} {rest}".split())
    assert read_settings("Try.", train.GROUPS, ["--config", "dalle_pytorch"]).as_dict() == typed.as_dict()


@pytest.mark.parametrize("entry, samples", [("L16", 16384), ("L16_POD16", 16384), ("L16_POD64", 16384)])
def test_the_global_batch_of_l16_is_the_same_on_every_pod(entry: str, samples: int) -> None:
    settings = read_settings("Try.", train.GROUPS, ["--config", entry])
    assert settings[train.TrainingOptions].global_batch == samples


def test_a_yaml_file_in_graphcores_style_loads_unchanged(tmp_path: Path) -> None:
    (tmp_path / "configs.yml").write_text(GRAPHCORE_YAML)
    words = ["--config", "mine", "--config-file", str(tmp_path / "configs.yml")]
    settings = read_settings("Try.", train.GROUPS, words).as_dict()
    expected = {
        "vqgan_model_path": None,
        "wandb_run_name": None,
        "checkpoint_output_dir": "",
        "cls_ipu_id": None,
        "byteio": True,
        "enable_als": False,
        "layers_per_ipu": [0, 7, 7, 2],
        "matmul_proportion": [0.15, 0.3, 0.3, 0.2],
        "attn_types": [ROW, COL, FULL],
        "learning_rate": 3e-4,
        "random_seed": 42,
    }
    assert {name: settings[name] for name in expected} == expected
