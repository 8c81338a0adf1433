"""Every form an image or a label map can come in, and every way it can be wrong."""

from __future__ import annotations

import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from maskformer.processing.loading import flat_list, open_picture, read_image, read_label_map

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(RGB).permute(2, 0, 1)


def png(picture: Image.Image | None = None) -> bytes:
    stream = io.BytesIO()
    (picture or Image.fromarray(RGB)).save(stream, "PNG")
    return stream.getvalue()


def test_files_bytes_arrays_and_tensors_give_the_same(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    sources = [
        path, str(path), png(), bytearray(png()), Image.fromarray(RGB), RGB, RGB.transpose(2, 0, 1),
        RGB[:, ::-1].copy()[:, ::-1], EXPECTED, EXPECTED.permute(1, 2, 0), RGB.astype(np.int64),
        torch.from_numpy(RGB.astype(np.int16)),
    ]  # fmt: skip
    for source in sources:
        image = read_image(source)
        assert image.dtype == torch.uint8
        assert torch.equal(image, EXPECTED)


def test_floats_keep_their_values():
    for dtype in (np.float16, np.float32, np.float64, ">f4"):
        image = read_image((RGB / 255).astype(dtype))
        assert image.dtype == torch.float32
        assert float((image - EXPECTED / 255).abs().max()) < 1e-3
    assert read_image((EXPECTED / 255).bfloat16().requires_grad_()).dtype == torch.float32


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr", "HSV", "F", "I", "I;16"])
def test_pillow_modes(mode: str):
    if mode in ("I", "I;16"):
        values = np.arange(54, dtype=np.uint16).reshape(6, 9) * 257
        picture = Image.fromarray(values.astype(np.int32) if mode == "I" else values)
        assert picture.mode == mode
        assert torch.equal(read_image(picture)[0], torch.arange(54, dtype=torch.uint8).view(6, 9))
        return
    picture = Image.fromarray(RGB).convert(mode)
    image = read_image(picture)
    assert image.shape == (1 if mode in ("L", "LA", "1", "F") else 3, 6, 9)
    if mode != "F":
        reference = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(image.expand(3, 6, 9), reference)
    assert read_image(picture, num_channels=1).shape == (1, 6, 9)


def test_a_palette_with_transparency_is_looked_up_before_alpha_is_dropped():
    picture = Image.fromarray(RGB[..., 0] % 4)
    picture = picture.convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 11, 12, 13])
    picture.info["transparency"] = b"\x00\xff\x80\x40"
    image = read_image(png(picture))
    palette = torch.tensor([[10, 20, 30], [40, 50, 60], [70, 80, 90], [11, 12, 13]], dtype=torch.uint8)
    assert torch.equal(image, palette[torch.from_numpy(RGB[..., 0] % 4).long()].permute(2, 0, 1))


def test_other_channel_counts():
    five = np.zeros((6, 9, 5), np.uint8)
    assert read_image(five, num_channels=5).shape == (5, 6, 9)
    assert read_image(five.transpose(2, 0, 1), num_channels=5).shape == (5, 6, 9)
    assert read_image(Image.fromarray(RGB).convert("RGBA"), num_channels=4).shape == (4, 6, 9)
    assert read_image(np.zeros((6, 9), np.uint8), num_channels=5).shape == (1, 6, 9)
    assert read_image(np.zeros((6, 9, 1), np.uint8)).shape == (1, 6, 9)


def test_an_ambiguous_array_is_channels_first_unless_said_otherwise():
    array = np.zeros((3, 5, 3), np.uint8)
    assert read_image(array).shape == (3, 5, 3)
    assert read_image(array, input_data_format="channels_last").shape == (3, 3, 5)
    assert read_image(np.zeros((1, 5, 3), np.uint8)).shape == (3, 1, 5)  # one row of colours
    assert read_image(np.zeros((3, 5, 1), np.uint8)).shape == (3, 5, 1)


def test_sixteen_bits_are_brought_to_eight():
    image = read_image(np.array([[0, 128, 129, 257, 65535]], np.uint16))
    assert image.tolist() == [[[0, 0, 1, 1, 255]]]


def test_booleans_are_black_and_white():
    assert read_image(np.array([[True, False]])).tolist() == [[[255, 0]]]


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_the_exif_orientation_is_applied(tmp_path: Path, kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    path = tmp_path / f"turned.{kind}"
    Image.fromarray(RGB).save(path, exif=exif, lossless=True)
    image = read_image(path)
    assert torch.equal(image, EXPECTED.flip(1).transpose(1, 2))
    with Image.open(path) as opened:
        assert torch.equal(read_image(opened), image)


def test_inputs_are_not_modified():
    frozen = RGB.copy()
    frozen.flags.writeable = False
    assert torch.equal(read_image(frozen), EXPECTED)


def test_lists_are_flattened():
    assert len(flat_list([RGB, [RGB, (RGB,)], [[RGB]]])) == 4
    assert len(flat_list(np.zeros((5, 6, 9, 3)))) == 5
    assert len(flat_list([torch.zeros(2, 3, 6, 9), RGB])) == 3
    assert len(flat_list(RGB)) == 1


def test_a_web_address_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(png()))
    assert torch.equal(read_image("https://example.org/a.png"), EXPECTED)


def test_offline(monkeypatch: pytest.MonkeyPatch):
    def refuse(address: str, timeout: float):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(ValueError, match=r"could not be downloaded from https://example.org/a.png .*local file"):
        read_image("https://example.org/a.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.png", r"image 7 \(missing.png\) is not a file"),
        (b"not a picture", "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (png()[:-40], "cannot be read as a picture"),
        (np.zeros((0, 5, 3), np.uint8), "is empty"),
        (np.zeros((5, 5, 4), np.uint8), r"shape \(5, 5, 4\), in which no channel axis has 3 or 1 channels"),
        (np.zeros((5,), np.uint8), "1 dimensions"),
        (np.full((5, 5), 300), "values from 300 to 300"),
        (np.full((5, 5), -1), "values from -1 to -1"),
        (np.zeros((5, 5), complex), "complex128"),
        (None, "NoneType"),
        ({"path": "x"}, "dict"),
    ],
)
def test_bad_images(source, message):
    with pytest.raises(ValueError, match=message):
        read_image(source, name="image 7")


def test_bad_channels_for_pillow_and_formats():
    with pytest.raises(ValueError, match="expected 5 channels"):
        read_image(Image.fromarray(RGB), num_channels=5)
    with pytest.raises(ValueError, match="input_data_format must be"):
        read_image(RGB, input_data_format="hwc")
    with pytest.raises(ValueError, match="no channel axis"):
        read_image(RGB, input_data_format="channels_first")
    with pytest.raises(ValueError, match="images is empty"):
        flat_list([[], ()])


def test_a_truncated_jpeg_file(tmp_path: Path):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(stream, "JPEG")
    (tmp_path / "half.jpg").write_bytes(stream.getvalue()[:4000])
    with pytest.raises(ValueError, match=r"half.jpg.*cannot be read as a picture.*damaged or cut off"):
        open_picture(tmp_path / "half.jpg")
    with Image.open(tmp_path / "half.jpg") as lazy, pytest.raises(ValueError, match="damaged or cut off"):
        read_image(lazy)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64, ">i4"]
)
def test_label_maps_of_any_integer(dtype):
    values = np.array([[0, 1], [100, 7]], dtype)
    label_map = read_label_map(values)
    assert label_map.tolist() == values.tolist()
    assert int(label_map.long().sum()) == 108


def test_label_maps_from_pictures():
    ids = np.array([[0, 3], [200, 255]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.flatten().tolist())
    palette.putpalette([255 - i // 3 for i in range(768)])
    for picture in (Image.fromarray(ids), palette, png(palette), Image.fromarray(ids.astype(np.int32))):
        assert read_label_map(picture).tolist() == ids.tolist()
    wide = np.array([[0, 40000]], np.uint16)
    assert read_label_map(png(Image.fromarray(wide))).tolist() == wide.tolist()
    assert read_label_map(Image.fromarray(np.array([[True, False]]))).tolist() == [[1, 0]]


def test_bad_label_maps():
    with pytest.raises(ValueError, match="float64 values; expected integer ids"):
        read_label_map(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"a RGB picture.*id = R \+ 256 G"):
        read_label_map(Image.fromarray(RGB))
    with pytest.raises(ValueError, match="cannot be read"):
        read_label_map(b"nothing")
    with pytest.raises(ValueError, match="float32 values"):
        read_label_map(np.full((2, 4, 4), 0.5, np.float32))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_does(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3))
    picture.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), expected)


def test_damaged_notes_leave_a_picture_as_it_is(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    Image.fromarray(RGB).save(written, "WEBP", exif=exif, lossless=True)
    damaged = written.getvalue().replace(b"MM\x00*", b"MM\x00Q")
    assert damaged != written.getvalue()
    assert np.array_equal(read_image(damaged).permute(1, 2, 0).numpy(), RGB)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif():
    written = io.BytesIO()
    Image.fromarray(RGB).save(written, "AVIF")
    start = written.getvalue().index(b"mdat") + 4
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_image(written.getvalue()[:start] + bytes(len(written.getvalue()) - start))
