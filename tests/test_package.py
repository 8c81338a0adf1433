"""The front door: names, versions, and what importing the package costs."""

import subprocess
import sys

import pytest

import maskformer

PUBLIC = {
    "MaskFormerConfig",
    "MaskFormerModel",
    "MaskFormerForInstanceSegmentation",
    "MaskFormerImageProcessor",
    "MaskFormerFeatureExtractor",
    "MaskFormerModelOutput",
    "MaskFormerForInstanceSegmentationOutput",
    "PerPixelBaseline",
    "PerPixelBaselinePlus",
    "load_model",
    "Segmenter",
    "__version__",
}


def test_public_names() -> None:
    assert set(maskformer.__all__) == PUBLIC
    assert set(dir(maskformer)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_loads(name: str) -> None:
    value = getattr(maskformer, name)
    assert getattr(value, "__name__", name) == name


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="MaskFormerModel"):
        _ = maskformer.MaskformerModel  # pyright: ignore


def test_import_does_not_load_torch() -> None:
    code = "import maskformer, sys; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
