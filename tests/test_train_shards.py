"""train.py and train_vae.py on WebDataset shards."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

import evaluate
from args import read_settings
from data.options import DataOptions
from data.report import DataError, DataReport
from data.shard_writer import main as make_shards
from options import OptionError
from tests.conftest import TRAIN_SCENES, Run
from tests.test_resume import assert_same_run, copy_as_of

Train = Callable[..., Run]
STEPS = 10  # three to an epoch


@pytest.fixture(scope="module")
def shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as shards in `train` and `val`, packed ones in `packed`."""
    root = tmp_path_factory.mktemp("shards")
    for split, name in (("train", "train"), ("validation", "val")):
        arguments = ["--input-folder", str(scenes), "--split", split, "--samples-per-shard", "5"]
        assert make_shards([*arguments, "--out-dir", str(root / name)]) == 0
    (root / "packed").mkdir()
    for shard in (root / "train").glob("*.tar"):
        with tarfile.open(shard) as plain, tarfile.open(root / "packed" / f"{shard.name}.gz", "w:gz") as packed:
            for member in plain:
                packed.addfile(member, plain.extractfile(member))
    return root


@pytest.fixture(scope="module")
def forms(shards: Path) -> Iterator[Dict[str, Dict[str, Any]]]:
    """The options that name the same shards in each way that they are read."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Silent, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/train/shard-{{000000..000002}}.tar"
        yield {
            "folder": {"input_folder": shards / "train"},
            "packed": {"input_folder": shards / "packed"},
            "http": {"input_folder": address, "epoch_samples": TRAIN_SCENES},
        }
        server.shutdown()
        thread.join()


FORMS = ("folder", "packed", "http")


def test_losses_are_the_same_however_the_shards_are_read(
    run_train: Train, forms: Dict[str, Dict[str, Any]], tmp_path: Path
) -> None:
    losses = {
        name: run_train(tmp_path / name, wds="img,cap", max_steps=7, **options).series("loss")
        for name, options in forms.items()
    }
    assert len(losses["folder"]) == 7
    assert all(values == losses["folder"] for values in losses.values()), losses


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dataloader_workers": 2, "shuffle_buffer": 4},
        {"batch_size": 1, "gradient_accumulation": 2, "device_iterations": 2, "dataloader_workers": 1},
        {"batch_size": 16, "max_steps": 4},
    ],
    ids=["plain", "in loader processes", "in micro batches", "more in a batch than there are"],
)
def test_a_transformer_resumed_after_any_step_is_the_uninterrupted_one(
    run_train: Train, forms: Dict[str, Dict[str, Any]], tmp_path: Path, form: str, options: Dict[str, Any]
) -> None:
    options = {"wds": "img,cap", "max_steps": STEPS, "checkpoint_save_steps": 1, **forms[form], **options}
    whole = run_train(tmp_path / "whole", **options)
    for step in whole.saved_steps()[:-1:4]:
        other = {**options, "dataloader_workers": 1 - min(options.get("dataloader_workers", 0), 1)}
        assert_same_run(run_train(copy_as_of(whole, step, tmp_path / f"{step}"), resume=True, **other), whole)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wds", ["img", "img,cap"])
def test_a_vae_trains_on_the_pictures_of_shards_and_resumes(
    run_train_vae: Train, forms: Dict[str, Dict[str, Any]], tmp_path: Path, form: str, wds: str
) -> None:
    options = {"wds": wds, "max_steps": 6, "checkpoint_save_steps": 2, "dataloader_workers": 1, **forms[form]}
    whole = run_train_vae(tmp_path / "whole", sample_steps=3, **options)
    assert len(whole.log()) == 6 and (whole.folder / "samples" / "step_00000003.png").exists()
    assert_same_run(run_train_vae(copy_as_of(whole, 2, tmp_path / "2"), resume=True, **options), whole)


def test_an_epoch_longer_than_the_shards_trains_and_resumes(
    run_train_vae: Train, run_train_clip: Train, shards: Path, tmp_path: Path
) -> None:
    options = {"wds": "img,cap", "input_folder": shards / "train", "epoch_samples": 3 * TRAIN_SCENES, "max_steps": 6}
    for run, folder in ((run_train_vae, tmp_path / "vae"), (run_train_clip, tmp_path / "clip")):
        whole = run(folder / "whole", checkpoint_save_steps=4, **options)
        assert len(whole.log()) == 6
        assert_same_run(run(copy_as_of(whole, 4, folder / "4"), resume=True, **options), whole)


@pytest.mark.parametrize("form", FORMS)
def test_clip_trains_on_shards(
    run_train_clip: Train, forms: Dict[str, Dict[str, Any]], shards: Path, tmp_path: Path, form: str
) -> None:
    options = {"wds": "img,cap", "validation_folder": shards / "val", "validation_steps": 2, "sample_steps": 3}
    run = run_train_clip(tmp_path / "clip", **options, **forms[form])
    assert len(run.log()) == 3 and len(run.log("validation")) == 1
    assert (run.folder / "samples" / "step_00000003.png").exists()


@pytest.mark.parametrize("form", FORMS)
def test_validation_shards_are_measured_and_their_captions_drawn(
    run_train: Train, run_train_vae: Train, forms: Dict[str, Dict[str, Any]], shards: Path, tmp_path: Path, form: str
) -> None:
    options = {"wds": "img,cap", "validation_folder": shards / "val", "validation_steps": 2, "sample_steps": 3}
    run = run_train(tmp_path / "dalle", **options, **forms[form])
    assert len(run.log("validation")) == 1 and run.series("text", "validation")[0] > 0
    assert (run.folder / "samples" / "step_00000003.png").exists()
    assert len(run_train_vae(tmp_path / "vae", **options, **forms[form]).log("validation")) == 1


def test_validation_is_the_same_from_shards_as_from_the_folder(
    run_train: Train, scenes: Path, shards: Path, tmp_path: Path
) -> None:
    def losses(folder: Path, **options: Any) -> Any:
        run = run_train(folder, max_steps=1, validation_steps=1, learning_rate=0, **options)
        return run.series("image", "validation")

    options = {"wds": "img,cap", "input_folder": shards / "train", "validation_folder": shards / "val"}
    from_shards, from_folder = losses(tmp_path / "shards", **options), losses(tmp_path / "folder", input_folder=scenes)
    # captions are drawn at random, and the two draw by other seeds; pictures are cut alike
    assert from_shards == pytest.approx(from_folder, rel=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_reads_shards(
    run: Callable[..., None],
    dalle: Run,
    forms: Dict[str, Dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    run(evaluate, dalle_path=dalle.folder, wds="img,cap", dataloader_workers=0, device="cpu", **forms[form])
    assert re.search(rf"validation on {TRAIN_SCENES} samples: loss \d", capsys.readouterr().out)


def spoil(shards: Path, folder: Path, packed: bool) -> Path:
    """Shards with a corrupt picture and one without captions."""
    folder.mkdir()
    name = f"shard-000000.tar{'.gz' if packed else ''}"
    source, mode = shards / "train" / "shard-000000.tar", "w:gz" if packed else "w"
    with tarfile.open(source) as sound, tarfile.open(folder / name, mode) as bad:
        for member in sound:
            if member.name == "000000001.cap":
                continue
            content = sound.extractfile(member)
            assert content is not None
            if member.name == "000000002.img":
                member.size = 40
            bad.addfile(member, content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_samples_are_counted_and_stop_training_above_the_share(
    run_train: Train, shards: Path, tmp_path: Path, packed: bool, workers: int
) -> None:
    folder = spoil(shards, tmp_path / "bad", packed)
    options = {"wds": "img,cap", "input_folder": folder, "max_steps": 12, "dataloader_workers": workers}
    run = run_train(tmp_path / "run", max_bad_share=0.5, **options)
    assert len(run.log()) == 12
    assert DataReport(run.folder / "data_report.jsonl").counts == {"unreadable image": 1, "image without captions": 1}
    with pytest.raises(DataError, match="2 of 5 files .*max_bad_share=0.3"):
        run_train(tmp_path / "stopped", max_bad_share=0.3, **options)


def test_a_shard_with_a_name_that_leads_out_stops_training_before_it_begins(
    run_train: Train, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(shards / "train", folder)
    with tarfile.open(folder / "shard-000001.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("../../run_me.img"))
    with pytest.raises(DataError, match="shard-000001.tar has the member '../../run_me.img', .* refused"):
        run_train(tmp_path / "run", wds="img,cap", input_folder=folder)
    assert not list(tmp_path.rglob("run_me*")) and not (tmp_path / "run" / "log.jsonl").exists()


def test_the_index_lies_beside_the_run_s_output(run_train: Train, shards: Path, tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", wds="img,cap", input_folder=shards / "train")
    assert (run.folder / "shard_index.pt").exists()


def test_a_command_in_a_yaml_file_is_not_run(
    run_train: Train, dalle_options: Dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    file = tmp_path / "theirs.yml"
    ours = json.loads(Path(dalle_options["config_file"]).read_text())["dalle"]
    command = f"pipe:touch {tmp_path / 'run_me'}"
    file.write_text(json.dumps({"dalle": {**ours, "wds": "img,cap", "validation_folder": command, "epoch_samples": 8}}))
    with pytest.raises(OptionError, match="validation_folder=pipe:touch .* does not stand on the command line"):
        run_train(tmp_path / "run", config_file=file, input_folder=shards / "train")
    assert not (tmp_path / "run_me").exists()


def test_the_flags_of_dalle_pytorch_name_our_options() -> None:
    def read(typed: str) -> DataOptions:
        return read_settings("", [DataOptions], typed.split(" "))[DataOptions]

    data = read("--image_text_folder X --wds img,cap --truncate_captions --random_resize_crop_lower_ratio 0.5")
    assert data.input_folder == "X" and data.wds == ("img", "cap")
    assert data.truncate_captions and data.random_resize_crop_lower_ratio == 0.5
    vae = read("--image_folder X --resize_ratio 0.5 --num_workers 3")
    assert vae.input_folder == "X" and vae.random_resize_crop_lower_ratio == 0.5 and vae.dataloader_workers == 3
