"""Reads the weights out of the authors' checkpoint files without running anything that the files contain.

A pickle is a program: loading one calls whatever it names. The reader below answers the few names that numpy arrays
and plain containers need with stand-ins of its own, and refuses every other name. numpy's own reconstructors are not
called either: a forged dtype can make them read foreign memory.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Kinds and byte sizes of plain numbers, as numpy writes them in a pickled dtype ("f4" = float32).
_PLAIN_DTYPES = re.compile(r"[fiu][1248]|b1")


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: Any, align: bool = False, copy: bool = True):
        if not isinstance(code, str) or not _PLAIN_DTYPES.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, not of plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for `numpy.ndarray`; `value` is the array once it is read."""

    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, "F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any = "C") -> _Array:
        # Python 2 wrote the bytes as text, one character a byte.
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {tuple(shape)} comes with {len(raw)} bytes")
        self.value = np.frombuffer(raw, dtype=dtype.dtype).reshape(shape, order=order)
        return self


class _Mapping(dict[Any, Any]):
    """Stands in for `collections.OrderedDict`, without the attributes that torch hangs on its state dicts."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Admitted:
    """A name the reader admits. Being no class and having no attributes, it can be called and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change one of the functions that read it")


def _not_callable(*_: Any) -> Any:
    raise pickle.UnpicklingError("it builds an array in a way numpy does not")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    array = _Array().fill(raw, dtype, ()).value
    return None if array is None else array[()]


_ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _not_callable,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _Mapping,
    # Empty bytes, in protocols 0 to 2, under the names of both generations of Python.
    **{f"{module}.bytes": lambda: b"" for module in ("builtins", "__builtin__")},
    # numpy 2 moved its functions from `numpy.core` to `numpy._core`: files of both exist.
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": lambda *given: _Array().fill(*given) for core in ("core", "_core")},
}


class _RefusedName(pickle.UnpicklingError):
    pass


class _NumbersUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in _ADMITTED:
            raise _RefusedName(full_name)
        return _Admitted(_ADMITTED[full_name])


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _NumbersUnpickler(file, encoding="latin1").load()
        except _RefusedName as error:
            raise ValueError(_refusal(path, str(error))) from None
        except Exception as error:  # a damaged or hostile file makes the pickle machine raise all kinds
            raise ValueError(f"{path} is damaged or is no checkpoint in pickle form: {first_line(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
        named = re.search(r"(?:GLOBAL|function|class) ([\w.]+\.[\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise ValueError(_refusal(path, named.group(1))) from None
        raise ValueError(f"{path} is damaged or is no checkpoint of torch: {first_line(error)}") from error


def _refusal(path: Path, name: str) -> str:
    return (
        f"{path} is refused, nothing of it was run: it names {name}, and a checkpoint may hold arrays of numbers "
        "and plain containers only"
    )


def first_line(error: Exception) -> str:
    """What an error says, in one line without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every array of a checkpoint of the authors, by its name there, on the CPU; floating point as float32.

    `.pkl` files of detectron2 (numpy arrays) and `.pth` files of torch are read; the weights may lie under "model",
    beside other entries such as an optimizer's.

    Raises:
        ValueError: the file is missing, damaged, names anything but arrays and containers, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the .pkl or .pth file of a checkpoint")
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} needs no conversion: load the directory it lies in")
    is_torch = zipfile.is_zipfile(path) or path.suffix in (".pth", ".pt")
    content = _read_torch(path) if is_torch else _read_pickle(path)
    model = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not model:
        raise ValueError(f"{path} holds no weights, expected a dictionary of arrays, alone or under the key 'model'")
    return {str(key): _to_tensor(path, str(key), value) for key, value in model.items()}


def _to_tensor(path: Path, key: str, value: Any) -> Tensor:
    if isinstance(value, _Array) and value.value is not None:
        native = value.value.dtype.newbyteorder("=")
        value = torch.from_numpy(np.array(value.value, dtype=native, order="C"))
    if not isinstance(value, Tensor):
        raise ValueError(f"{path} holds {type(value).__name__} under {key!r}, expected an array: is it a checkpoint?")
    return value.float() if value.is_floating_point() else value
