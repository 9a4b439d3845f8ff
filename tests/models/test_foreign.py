"""Other people's files: tensors and plain containers come out, and nothing that a file names is run."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.foreign import ForeignFileError, Inert, module_weights, read_foreign

Save = Callable[[Any, Path], None]
FLOATS = (torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128)
DTYPES = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def save_zipped(contents: Any, path: Path) -> None:
    torch.save(contents, path)


def save_as_before(contents: Any, path: Path) -> None:
    torch.save(contents, path, _use_new_zipfile_serialization=False)


def save_pickled(contents: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(contents))


@pytest.fixture(params=[save_zipped, save_as_before])
def save(request: pytest.FixtureRequest) -> Save:
    """Both formats of torch.save."""
    return request.param


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Tuple[Any, ...]:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there only if something was run."""
    return tmp_path / "something was run"


def assert_equal(left: Any, right: Any) -> None:
    """Equal in value and, but for kinds of dicts, in type."""
    if isinstance(right, Tensor):
        assert type(left) is Tensor and not left.requires_grad
        assert (left.dtype, left.shape, left.stride()) == (right.dtype, right.shape, right.stride())
        assert torch.equal(left, right)
    elif isinstance(right, dict):
        assert isinstance(left, dict) and list(left) == list(right)
        for key in right:
            assert_equal(left[key], right[key])
    elif isinstance(right, (list, tuple)):
        assert isinstance(left, (list, tuple)) and len(left) == len(right)
        for ours, theirs in zip(left, right):
            assert_equal(ours, theirs)
    else:
        assert type(left) is type(right) and left == right


def test_tensors_and_plain_containers_come_out_as_they_went_in(save: Save, tmp_path: Path) -> None:
    grid = torch.arange(24.0).view(2, 3, 4)
    contents = {
        "dtypes": [torch.tensor([0, 1, 2, 3]).to(dtype) for dtype in DTYPES],
        "views": {"whole": grid, "turned": grid.permute(2, 0, 1), "part": grid[1, ::2], "one": grid[1, 2, 3]},
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "state": nn.Linear(2, 3).state_dict(),
        "counts": collections.defaultdict(int, {"a": 1}),
        "plain": [1, -(2**70), 2.5, "text", b"bytes", None, True, (1, (2,)), {3}, frozenset({4}), 1j],
        "dtype": torch.float16,
    }
    save(contents, tmp_path / "file.pt")
    read = read_foreign(tmp_path / "file.pt")
    contents["parameter"] = contents["parameter"].data
    assert_equal(read, contents)


def test_what_is_no_plain_container_and_often_there_comes_out_as_the_nearest_one(save: Save, tmp_path: Path) -> None:
    number = torch.tensor(2.5, dtype=torch.float64).numpy()[()]
    save([torch.Size([2, 3]), torch.device("cuda", 1), torch.device("cpu"), number], tmp_path / "file.pt")
    assert read_foreign(tmp_path / "file.pt") == [(2, 3), "cuda:1", "cpu", 2.5]


def test_tied_weights_stay_tied(save: Save, tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    save({"a": weight, "b": weight[2:]}, tmp_path / "file.pt")
    read = read_foreign(tmp_path / "file.pt")
    read["a"][2] = 100
    assert read["b"][0] == 100


def test_safetensors_are_read_by_their_ending(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.arange(3)}, str(tmp_path / "file.safetensors"))
    assert_equal(read_foreign(tmp_path / "file.safetensors"), {"a": torch.arange(3)})


def attacks(marker: Path) -> Dict[str, Any]:
    """What would make the marker, by the name that has to be refused."""
    touch = f"open({str(marker)!r}, 'w')"
    return {
        f"{os.system.__module__}.system": Call(os.system, f"touch '{marker}'"),
        "builtins.eval": Call(eval, touch),
        "builtins.exec": Call(exec, touch),
        "io.open": Call(open, str(marker), "w"),
        "builtins.getattr": Call(getattr, {}, "clear"),
        r"(subprocess|commands).Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "pathlib.": marker,
        "torch.serialization.load": Call(torch.load, str(marker)),
        "models.foreign.read_foreign": Call(read_foreign, marker),
    }


@pytest.mark.parametrize("name", attacks(Path("marker")))
@pytest.mark.parametrize("write", [save_zipped, save_as_before, save_pickled])
def test_what_would_run_something_is_refused_by_name_and_nothing_is_run(
    write: Save, name: str, tmp_path: Path, marker: Path
) -> None:
    path = tmp_path / "file.pt"
    write({"weights": [{"deep": (1, attacks(marker)[name])}]}, path)
    with pytest.raises(ForeignFileError, match=f"file.pt names {name}.*nothing of it was run"):
        read_foreign(path)
    assert not marker.exists()


@pytest.mark.parametrize("code", [b"cos\nsystem\n", b"ios\nsystem\n", b"\x8c\x02os\x8c\x06system\x93"])
@pytest.mark.parametrize("header", [b"", b"\x80\x04"])
def test_every_way_to_name_a_function_is_refused(header: bytes, code: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(header + b"(" + code + b"(S'true'\ntR.")
    with pytest.raises(ForeignFileError, match="names os.system"):
        read_foreign(path)


def test_an_attack_within_a_known_class_is_refused(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "file.pt"
    save_pickled(Call(nn.Linear, Call(os.system, f"touch '{marker}'")), path)
    with pytest.raises(ForeignFileError, match="system"):
        read_foreign(path)
    assert not marker.exists()


def test_calls_of_known_packages_are_kept_and_not_made(tmp_path: Path) -> None:
    save_pickled(Call(nn.modules.module.register_module_forward_hook, print), tmp_path / "refused.pkl")
    with pytest.raises(ForeignFileError, match="builtins.print"):
        read_foreign(tmp_path / "refused.pkl")
    hooks = dict(nn.modules.module._global_forward_hooks)
    save_pickled(Call(nn.modules.module.register_module_forward_hook, 1), tmp_path / "kept.pkl")
    kept = read_foreign(tmp_path / "kept.pkl")
    assert isinstance(kept, Inert) and kept.args == (1,)
    assert kept.name == "torch.nn.modules.module.register_module_forward_hook"
    assert nn.modules.module._global_forward_hooks == hooks


def test_dotted_names_reach_nothing_behind_a_class(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(b"\x80\x04\x8c\x08torch.nn\x8c\x1fModule.__init__.__globals__.get\x93\x8c\x02os\x85R.")
    read = read_foreign(path)
    assert isinstance(read, Inert) and read.args == ("os",)


def test_no_package_that_a_file_names_is_imported(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dall_e.py").write_text(f"open({str(marker)!r}, 'w')\nclass Encoder: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "file.pkl").write_bytes(b"cdall_e\nEncoder\n)\x81}S'a'\nI1\nsb.")
    read = read_foreign(tmp_path / "file.pkl")
    assert (read.name, read.state) == ("dall_e.Encoder", {"a": 1})
    assert not marker.exists() and "dall_e" not in sys.modules


def test_kinds_of_dicts_and_lists_of_known_packages_keep_their_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("pytorch_lightning")
    for base in (dict, list):
        name = f"A{base.__name__}"
        setattr(package, name, type(name, (base,), {"__module__": "pytorch_lightning"}))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", package)
        save_pickled([package.Adict(dim=3), package.Alist([4, 5])], tmp_path / "file.ckpt")  # type: ignore[attr-defined]
    read = read_foreign(tmp_path / "file.ckpt")
    assert [member.items for member in read] == [[("dim", 3)], [(None, 4), (None, 5)]]


def test_a_file_cannot_change_what_later_files_are_read_with(tmp_path: Path) -> None:
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.nn\nLinear\n", b"ccollections\nOrderedDict\n"):
        (tmp_path / "evil.pkl").write_bytes(b"\x80\x02" + target + b"(N}S'_function'\nI1\ns\x86b.")
        with pytest.raises(ForeignFileError, match="evil.pkl is torn"):
            read_foreign(tmp_path / "evil.pkl")
    test_tied_weights_stay_tied(save_zipped, tmp_path)


def torn_files(path: Path) -> List[bytes]:
    """The beginnings of a file, of several lengths."""
    whole = path.read_bytes()
    return [whole[: len(whole) * part // 8] for part in range(8)] + [whole[:-1]]


def test_a_torn_file_is_refused_by_name_wherever_it_ends(save: Save, tmp_path: Path) -> None:
    save({"a": torch.rand(100), "b": torch.rand(50)}, tmp_path / "file.pt")
    for torn in torn_files(tmp_path / "file.pt"):
        (tmp_path / "torn.pt").write_bytes(torn)
        with pytest.raises(ForeignFileError, match="torn.pt is torn"):
            read_foreign(tmp_path / "torn.pt")


def test_torn_safetensors_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.rand(100)}, str(tmp_path / "file.safetensors"))
    for torn in torn_files(tmp_path / "file.safetensors"):
        (tmp_path / "torn.safetensors").write_bytes(torn)
        with pytest.raises(ForeignFileError, match="torn.safetensors is torn"):
            read_foreign(tmp_path / "torn.safetensors")


@pytest.mark.parametrize("contents", [b"<html>Not found</html>", b"PK\x03\x04 and no more", b"\x80\x04."])
def test_what_is_no_checkpoint_is_refused_by_name(contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.ckpt").write_bytes(contents)
    with pytest.raises(ForeignFileError, match="file.ckpt is torn, or no file of torch.save"):
        read_foreign(tmp_path / "file.ckpt")


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match="absent.pt cannot be read.*check the path"):
        read_foreign(tmp_path / "absent.pt")


def test_archives_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "compressed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("picture.png", b"")
    with pytest.raises(ForeignFileError, match="compressed.pt is a compressed archive"):
        read_foreign(tmp_path / "compressed.pt")
    with pytest.raises(ForeignFileError, match="other.pt is an archive without data.pkl"):
        read_foreign(tmp_path / "other.pt")


@pytest.mark.parametrize("offset, size", [(0, 5), (3, 2), (-1, 2)])
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    offset: int, size: int, save: Save, tmp_path: Path
) -> None:
    storage = torch.zeros(4).storage()
    rebuild = torch._utils._rebuild_tensor_v2
    save(Call(rebuild, storage, offset, (size,), (1,), False, collections.OrderedDict()), tmp_path / "file.pt")
    with pytest.raises(ForeignFileError, match="file.pt is torn"):
        read_foreign(tmp_path / "file.pt")


def test_a_storage_larger_than_the_file_is_refused_before_room_is_made_for_it(tmp_path: Path) -> None:
    save_as_before(torch.zeros(1000), tmp_path / "file.pt")
    data = (tmp_path / "file.pt").read_bytes()
    count, enormous = b"M" + struct.pack("<H", 1000), b"\x8a\x06" + struct.pack("<q", 2**44)[:6]
    assert count in data
    (tmp_path / "file.pt").write_bytes(data.replace(count, enormous))
    with pytest.raises(ForeignFileError, match=f"a storage of {2**46} bytes"):
        read_foreign(tmp_path / "file.pt")


def test_a_pickled_module_gives_the_weights_of_its_state_dict(save: Save, tmp_path: Path) -> None:
    inner = nn.Sequential(collections.OrderedDict({"conv": nn.Conv2d(2, 3, 1, bias=False), "norm": nn.BatchNorm2d(3)}))
    module = nn.ModuleList([inner, nn.Linear(3, 4), nn.ReLU()])
    module.register_buffer("kept", torch.rand(2))
    module.register_buffer("not_kept", torch.rand(2), persistent=False)
    save(module, tmp_path / "file.pkl")
    weights, expected = module_weights(read_foreign(tmp_path / "file.pkl")), module.state_dict()
    assert set(weights) == set(expected)
    assert_equal({name: weights[name] for name in expected}, dict(expected))


@pytest.mark.parametrize("contents", [{"a": 1}, nn.Parameter(torch.ones(1)), [nn.Linear(1, 1)]])
def test_what_is_no_module_has_no_weights_of_one(contents: Any, tmp_path: Path) -> None:
    save_zipped(contents, tmp_path / "file.pt")
    with pytest.raises(ForeignFileError, match="the object is no pickled nn.Module"):
        module_weights(read_foreign(tmp_path / "file.pt"))


def test_a_module_within_itself_is_refused(tmp_path: Path) -> None:
    module = nn.ModuleList([nn.Linear(1, 1)])
    module._modules["itself"] = module
    save_zipped(module, tmp_path / "file.pkl")
    with pytest.raises(ForeignFileError, match="no pickled nn.Module"):
        module_weights(read_foreign(tmp_path / "file.pkl"))
