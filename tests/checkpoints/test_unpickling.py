"""Reading the authors' files: everything numpy writes is read, and nothing a file contains is ever run."""

import builtins
import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from maskformer.checkpoints.unpickling import read_weights

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by_columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(12, dtype=np.float32)[::2],
    "big_endian": np.arange(3, dtype=">f4"),
    "double": np.array([0.5, 1.5]),
    "half": np.array([0.5, 1.5], dtype=np.float16),
    "integers": np.arange(4).reshape(2, 2),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "no_dimension": np.array(7, dtype=np.int64),
}


def written(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Calls:
    """Pickled, asks the reader to call `function`; the evidence of a call is the file it would make."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_kind_and_protocol_are_read(tmp_path, protocol):
    content = {"model": collections.OrderedDict(ARRAYS), "iteration": np.float64(3.5), "__author__": "someone"}

    weights = read_weights(written(tmp_path / "model.pkl", content, protocol))

    assert weights.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        expected = array.astype(np.float32) if array.dtype.kind == "f" else array
        np.testing.assert_array_equal(weights[name].numpy(), expected)
    assert weights["double"].dtype == weights["half"].dtype == weights["big_endian"].dtype == torch.float32
    assert weights["integers"].dtype == torch.int64


def test_files_of_both_numpy_generations_are_read(tmp_path):
    content = pickle.dumps({"weight": ARRAYS["matrix"]}, protocol=2)
    older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path = tmp_path / "model.pkl"

    for each in {content, older}:
        path.write_bytes(each)
        assert read_weights(path)["weight"].tolist() == ARRAYS["matrix"].tolist()
    assert content != older


def test_files_of_python_2_are_read(tmp_path):
    """It wrote byte strings, which come back as text, one character a byte."""

    def short_string(text):
        return b"U" + bytes([len(text)]) + text

    raw = struct.pack("<2f", 1.5, -2.0)
    path = tmp_path / "model.pkl"
    path.write_bytes(
        b"\x80\x02}" + short_string(b"weight")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short_string(b"b") + b"\x87R"
        + b"(K\x01K\x02\x85cnumpy\ndtype\n" + short_string(b"f4") + b"K\x00K\x01\x87R"
        + b"(K\x03" + short_string(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89" + short_string(raw) + b"tbs."
    )  # fmt: skip

    assert read_weights(path)["weight"].tolist() == [1.5, -2.0]


def test_torch_files_are_read_with_what_a_trainer_puts_beside_the_weights(tmp_path):
    weights = collections.OrderedDict(weight=torch.arange(3.0), count=torch.tensor(2))
    torch.save({"model": weights, "optimizer": {"state": {}, "lr": 1e-4}, "iteration": 5}, tmp_path / "model_final.pth")

    read = read_weights(tmp_path / "model_final.pth")

    assert read["weight"].tolist() == [0.0, 1.0, 2.0]
    assert read["count"].dtype == torch.int64


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda mark: Calls(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"), "eval"),
        (lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"), "exec"),
        (lambda mark: Calls(builtins.getattr, "text", "format"), "getattr"),
        (lambda mark: Calls(open, str(mark), "w"), "io.open"),
        (lambda mark: Calls(np.save, str(mark), np.zeros(1)), "numpy.save"),
        (lambda mark: torch.ones(2), "torch._utils._rebuild_tensor_v2"),
        (lambda mark: np.ma.masked_array([1.0]), "numpy.ma"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_names_are_refused_and_nothing_is_run(tmp_path, make, name, protocol):
    mark = tmp_path / "was_run"
    path = written(tmp_path / "model.pkl", {"model": {"weight": ARRAYS["matrix"], "other": make(mark)}}, protocol)

    with pytest.raises(ValueError, match=rf"model.pkl is refused, nothing of it was run: it names [\w.]*{name}"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_files_that_name_functions_are_refused(tmp_path, zipped):
    mark = tmp_path / "was_run"
    content = {"model": {"weight": torch.ones(1), "other": Calls(os.system, f"touch {mark}")}}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)

    with pytest.raises(ValueError, match=r"model.pth is refused, nothing of it was run: it names posix.system"):
        read_weights(tmp_path / "model.pth")
    assert not mark.exists()


ADMITTED_BUT_MISUSED = {
    # An array of Python objects whose "pointers" the file itself provides.
    "forged object array": b"cnumpy\ndtype\n(U\x02O8I00\nI01\ntR.",
    "structured array": b"cnumpy\ndtype\n(U\x02V8I00\nI01\ntR.",
    "several fields": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x05f4,f4I00\nI01\ntRU\x08abcdefghtR.",
    "call of the array class": b"cnumpy\nndarray\n((I2\ntU\x02f4tR.",
    "bytes in another encoding": b"c_codecs\nencode\n(U\x01aU\x05utf-8tR.",
    # Changing a function of the reader: state for something that is no instance.
    "state for a function": b"c_codecs\nencode\n}U\x08__code__U\x01xsb.",
    "new instance of a function": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "fewer bytes than the shape": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8I00\nI01\ntRU\x02abtR.",
    "persistent id": b"Pelsewhere\n.",
    "array that is never filled": b"}U\x01acnumpy.core.multiarray\n_reconstruct\n)Rs.",
}


@pytest.mark.parametrize("program", ADMITTED_BUT_MISUSED.values(), ids=ADMITTED_BUT_MISUSED.keys())
def test_admitted_names_cannot_be_misused(tmp_path, program):
    path = tmp_path / "model.pkl"
    path.write_bytes(program)

    with pytest.raises(ValueError, match=r"model.pkl (is damaged or is no checkpoint|holds _Array under)"):
        read_weights(path)
    assert read_weights(written(path, ARRAYS))["matrix"].shape == (2, 3)


def test_truncated_files_are_a_value_error(tmp_path):
    content = pickle.dumps({"model": {"weight": ARRAYS["matrix"]}}, protocol=4)
    path = tmp_path / "model.pkl"

    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model.pkl is damaged or is no checkpoint"):
            read_weights(path)


@pytest.mark.parametrize("name", ["model.pkl", "model.pth"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", bytes(range(256)), b"<html></html>"])
def test_files_of_another_kind_are_named_as_such(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} is damaged or is no checkpoint"):
        read_weights(path)


def test_archive_without_weights_is_damaged(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "model.pkl").write_bytes(buffer.getvalue())

    with pytest.raises(ValueError, match="is damaged or is no checkpoint of torch"):
        read_weights(tmp_path / "model.pkl")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2], "holds no weights"),
        ({}, "holds no weights"),
        ({"model": {}}, "holds no weights"),
        ({"model": 5}, "holds no weights"),
        ({"weight": "text"}, "holds str under 'weight'"),
        ({"weight": [1.0, 2.0]}, "holds list under 'weight'"),
    ],
)
def test_pickles_without_weights_are_named_as_such(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_weights(written(tmp_path / "model.pkl", content))


def test_missing_files_and_files_that_need_no_conversion(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.pkl is not a file"):
        read_weights(tmp_path / "nowhere.pkl")
    with pytest.raises(ValueError, match="is not a file"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.safetensors needs no conversion"):
        read_weights(tmp_path / "model.safetensors")
