"""Other people's files of tensors, read without running anything that they name.

A `.pt`, `.pth`, `.ckpt` or `.pkl` is a pickle: a program that says which functions to call. Of the names in it, those
that tensors and plain containers are made with get a function of this file in their place; classes that released
checkpoints are known to mention get an `Inert` object, which keeps what the file says about it and does nothing;
everything else is refused. Nothing that a file names is ever imported.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, NoReturn, Optional, Tuple

import torch
from torch import Tensor

from options import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch.save wrote before its zip format
_ENOUGH_DEPTH = 100  # of modules within modules
_ENOUGH_TEXT = 120  # of the reason why a file is torn
_STORAGES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype)[len("torch.") :]: dtype for dtype in _STORAGES.values()}
# Packages whose classes released checkpoints mention, and single names.
_INERT_PACKAGES = (
    "torch.nn", "torch.optim", "dall_e", "dalle_pytorch", "taming", "pytorch_lightning", "lightning",
    "lightning_fabric", "omegaconf",
)  # fmt: skip
_INERT_BUILTINS = ("int", "long", "float", "str", "unicode", "bool", "list", "dict", "tuple", "object")
_INERT_NAMES = {"torch.Tensor", "argparse.Namespace", "typing.Any", *(f"builtins.{name}" for name in _INERT_BUILTINS)}
_NUMPY_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip

# Makes or finds the storage of a dtype, a key and a number of elements, as a flat tensor.
_MakeStorage = Callable[[torch.dtype, str, int], Tensor]


class ForeignFileError(UserError):
    """A file of another program that cannot be used. The message names the file, what is wrong and the remedy."""


class Inert:
    """What stands in for an object of a class that is not built here.

    Attributes:
        name: the class's name in the file.
        args: what it was to be constructed with.
        state: what the file says of its attributes, for most classes a dict; None: nothing.
        items: key and value pairs, for a class that is a kind of dict; keyless ones for a kind of list.
    """

    name = ""
    args: Tuple[Any, ...]
    state: Any
    items: List[Tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Keep the arguments, for pickles that go past `__init__` too."""
        inert = super().__new__(cls)
        inert.args, inert.state, inert.items = args, None, []
        return inert

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; `__new__` kept what there is."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Keep a member, for a class that is a kind of list."""
        self.items.append((None, value))


def read_foreign(path: Path) -> Any:
    """The contents of a file: tensors on the CPU, plain containers, and `Inert` objects.

    Args:
        path: a file of torch.save (either format), a plain pickle, or a `.safetensors` file.

    Raises:
        ForeignFileError: it cannot be read, is torn, or names anything to run.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            return _read_zip(file, path) if is_zip else _read_pickles(file, path)
    except ForeignFileError:
        raise
    except OSError as error:
        raise ForeignFileError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    except Exception as error:  # whatever a damaged pickle stumbles on
        what = f"{type(error).__name__}: {str(error)[:_ENOUGH_TEXT]}"
        raise ForeignFileError(
            f"{path} is torn, or no file of torch.save or safetensors ({what}); get it anew"
        ) from None


def module_weights(module: Any) -> Dict[str, Tensor]:
    """Parameters and buffers of a pickled `nn.Module`, by the names its `state_dict` has.

    Raises:
        ForeignFileError: it is not one.
    """
    weights: Dict[str, Tensor] = {}
    _collect_weights(module, "", weights, 0)
    return weights


def _collect_weights(module: Any, prefix: str, weights: Dict[str, Tensor], depth: int) -> None:
    state = getattr(module, "state", None)
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict) or depth > _ENOUGH_DEPTH:
        raise ForeignFileError(f"{prefix.rstrip('.') or 'the object'} is no pickled nn.Module; give a file of one")
    for name in ("_parameters", "_buffers"):
        for key, value in state.get(name, {}).items():
            if isinstance(value, Tensor) and key not in state.get("_non_persistent_buffers_set", ()):
                weights[f"{prefix}{key}"] = value
    for key, child in state["_modules"].items():
        if child is not None:
            _collect_weights(child, f"{prefix}{key}.", weights, depth + 1)


class _Unpickler(pickle.Unpickler):
    """Reads one pickle; see the top of this file."""

    def __init__(self, file: BinaryIO, path: Path, storage: Optional[_MakeStorage] = None) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file.

        Raises:
            ForeignFileError: the name is none of those that released files need.
        """
        module = "builtins" if module == "__builtin__" else module  # as Python 2 wrote it
        full = f"{module}.{name}"
        if full in _CONSTRUCTORS:
            return _CONSTRUCTORS[full]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if full in _INERT_NAMES or any(f"{module}.".startswith(f"{package}.") for package in _INERT_PACKAGES):
            return type("Inert", (Inert,), {"name": full})
        raise ForeignFileError(
            f"{self.path} names {full}, which is no tensor or plain container; nothing of it was run. Use a file that "
            "holds weights alone"
        )

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or a module's class, which old files give with its source; that is not looked at."""
        if pid[0] == "module":
            return pid[1]
        kind, dtype, key, _, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or self.storage is None:
            raise pickle.UnpicklingError(f"no storage is meant by {pid!r}")
        whole = self.storage(dtype, str(key), numel)
        view = pid[5] if len(pid) > 5 else None  # in files of torch before 0.4
        return whole[view[1] : view[1] + view[2]] if view else whole


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(str(path))


def _read_zip(file: BinaryIO, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ForeignFileError(f"{path} is a compressed archive, which torch.save never writes; unpack it first")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ForeignFileError(f"{path} is an archive without data.pkl, so not of torch.save; give the file itself")
        folder = pickles[0].rsplit("/", 1)[0]
        if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
            raise ForeignFileError(f"{path} was written on a big-endian machine; save it anew on another one")
        read: Dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
            if key not in read:
                member = archive.getinfo(f"{folder}/data/{key}")
                read[key] = _allocate(dtype, numel, member.file_size)
                with archive.open(member) as data:
                    _fill(read[key], data)
            return read[key]

        with archive.open(pickles[0]) as data:
            return _Unpickler(data, path, storage).load()  # type: ignore[arg-type]


def _read_pickles(file: BinaryIO, path: Path) -> Any:
    """A plain pickle, or torch's older format: three pickles of preliminaries, the object, its storages' keys; data."""
    first = _Unpickler(file, path).load()
    if not isinstance(first, int) or first != _LEGACY_MAGIC:
        return first
    size = os.fstat(file.fileno()).st_size
    allocated: Dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in allocated:
            allocated[key] = _allocate(dtype, numel, size)
        return allocated[key]

    for _ in ("protocol", "machine"):
        _Unpickler(file, path).load()
    contents = _Unpickler(file, path, storage).load()
    for key in _Unpickler(file, path).load():
        numel = int.from_bytes(file.read(8), "little")
        if numel != allocated[key].numel():
            raise pickle.UnpicklingError(f"storage {key} holds {numel} elements, {allocated[key].numel()} are named")
        _fill(allocated[key], file)
    return contents


def _allocate(dtype: torch.dtype, numel: int, available: int) -> Tensor:
    """Room for a storage that `available` bytes of the file are there for."""
    needed = numel * torch.empty((), dtype=dtype).element_size()
    if not 0 <= needed <= available:
        raise pickle.UnpicklingError(f"a storage of {needed} bytes in a file that holds {available}")
    return torch.empty(numel, dtype=dtype)


def _fill(storage: Tensor, file: Any) -> None:
    """Read a storage's bytes, in the order that this program's machines have (little-endian)."""
    if not storage.numel():
        return
    data = bytearray(storage.numel() * storage.element_size())
    if file.readinto(data) != len(data):
        raise EOFError("the file ends within a storage")
    storage.copy_(torch.frombuffer(data, dtype=storage.dtype))


class _Constructor:
    """A function of this file in the place of one that pickles name; unlike a bare one, a pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a function's state is set")


class _Mapping(Dict[Any, Any]):
    """A dict, without the attributes that pickles give to an OrderedDict."""

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyDtype:
    """The dtype of a NumPy number."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = _NUMPY_DTYPES[str(code)]

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        if state[1] == ">":
            raise pickle.UnpicklingError("a big-endian number")


def _make_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without a storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # checks its bounds


def _same_tensor(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _make_from_type(function: Any, kind: Any, args: Tuple[Any, ...], state: Any) -> Any:
    if not isinstance(function, _Constructor):
        raise pickle.UnpicklingError("a tensor made by something else")
    return function(*args)


def _make_dict(factory: Any = None, *items: Any) -> _Mapping:
    return _Mapping(*items)


def _make_device(kind: str, index: Optional[int] = None) -> str:
    return kind if index is None else f"{kind}:{index}"


def _make_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode("latin1")


def _make_number(kind: _NumpyDtype, data: bytes) -> Any:
    return torch.frombuffer(bytearray(data), dtype=kind.dtype).item()


_CONSTRUCTORS: Dict[str, _Constructor] = {
    "torch._utils._rebuild_tensor": _Constructor(_make_tensor),
    "torch._utils._rebuild_tensor_v2": _Constructor(_make_tensor),
    "torch._utils._rebuild_parameter": _Constructor(_same_tensor),
    "torch._utils._rebuild_parameter_with_state": _Constructor(_same_tensor),
    "torch._tensor._rebuild_from_type_v2": _Constructor(_make_from_type),
    "torch.Size": _Constructor(tuple),
    "torch.device": _Constructor(_make_device),
    "collections.OrderedDict": _Constructor(_Mapping),
    "collections.defaultdict": _Constructor(_make_dict),
    "builtins.set": _Constructor(set),
    "builtins.frozenset": _Constructor(frozenset),
    "builtins.complex": _Constructor(complex),
    "_codecs.encode": _Constructor(_make_bytes),
    "numpy.dtype": _Constructor(_NumpyDtype),
    "numpy.core.multiarray.scalar": _Constructor(_make_number),
    "numpy._core.multiarray.scalar": _Constructor(_make_number),
}
