"""Pictures and label maps as tensors, of Pillow images of any mode, files, their bytes, http(s) addresses and arrays.

Eight-bit pictures stay eight-bit: a float copy of a photograph is made only after it has been resized.

Shapes: C channels, N masks, H W image.
"""

from __future__ import annotations

import io
import os
import struct
import urllib.request
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

DOWNLOAD_TIMEOUT_SECONDS = 30
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # "I" is how Pillow reads many 16-bit files
MAP_MODES = ("1", "L", "P", *SIXTEEN_BIT_MODES)


def flat_list(images: Any) -> list[Any]:
    """One image, a batched 4-D array, or any nesting of lists, as a flat list of images; ValueError if it is empty."""
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        images = list(images)
    found = [leaf for item in images for leaf in flat_list(item)] if isinstance(images, (list, tuple)) else [images]
    if not found:
        raise ValueError("images is empty; pass at least one image.")
    return found


def read_image(
    source: Any, num_channels: int = 3, input_data_format: str | None = None, name: str = "the image"
) -> Tensor:
    """Read one picture as [C, H, W], uint8 in 0..255 or, where floats were given, float32 with their own values.

    C is `num_channels`, or 1 for a grey picture (which broadcasts). Alpha is dropped (after applying the palette),
    the EXIF orientation is applied, 16-bit values are brought to 0..255. An array's channels are its first or last
    axis, whichever has the right length (the first, if both); `input_data_format` ("channels_first",
    "channels_last") settles it. The input is never modified, but its memory may be shared.

    Raises:
        ValueError: unreadable or empty picture, wrong number of channels, integers outside 0..255.
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray)):
        source = open_picture(source, name)
    if isinstance(source, Image.Image):
        array, input_data_format = _picture_to_array(source, num_channels, name), "channels_last"
    elif isinstance(source, Tensor):
        source = source.detach().cpu()
        array = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    elif isinstance(source, np.ndarray):
        array = source
    else:
        kind = type(source).__name__
        raise ValueError(f"{name} is a {kind}; expected a Pillow image, an array, a tensor, a path or bytes.")
    array = _channels_first(array, num_channels, input_data_format, name)
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: its (channels, height, width) is {array.shape}.")
    return _as_tensor(_eight_bit_or_float(array, name))


def open_picture(source: str | os.PathLike[str] | bytes | bytearray, name: str = "the image") -> Image.Image:
    """Open and fully decode a file, its bytes, or an http(s) address; every failure is a ValueError of one sentence."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(source, timeout=DOWNLOAD_TIMEOUT_SECONDS) as reply:
                name, source = f"{name} ({source})", reply.read()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} could not be downloaded from {source} ({error}); check the connection or pass a local file."
            ) from error
    elif not isinstance(source, (bytes, bytearray)):
        name = f"{name} ({os.fspath(source)})"
        if not os.path.isfile(source):
            raise ValueError(f"{name} is not a file; check the path.")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source) as picture:
            picture.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        RuntimeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"{name} cannot be read as a picture ({error}); it may be damaged or cut off.") from error
    return picture  # decoded, so it outlives its file


def read_label_map(source: Any, name: str = "the segmentation map") -> Tensor:
    """Read one label map (or stack of masks) as integers of any width, [H, W] or [N, H, W], values untouched.

    Raises:
        ValueError: unreadable, floats (except masks of 0.0 and 1.0 in three dimensions), or a colour picture.
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray)):
        source = open_picture(source, name)
    if isinstance(source, Image.Image):
        if source.mode not in MAP_MODES:
            hint = "a COCO panoptic file holds id = R + 256 G + 65536 B"
            raise ValueError(f"{name} is a {source.mode} picture; expected one number per pixel ({hint}).")
        source = np.array(_upright(source))
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    is_mask = array.dtype.kind == "f" and array.ndim == 3 and bool(np.isin(array, (0.0, 1.0)).all())
    if is_mask or array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)  # torch has no arithmetic for wide unsigned integers
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype} values; expected integer ids, for example map.astype('int64').")
    return _as_tensor(array)


def _upright(picture: Image.Image) -> Image.Image:
    try:  # exif_transpose copies the picture even when there is nothing to turn
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        return ImageOps.exif_transpose(picture) if turned else picture
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return picture  # damaged notes do not count


def _picture_to_array(picture: Image.Image, num_channels: int, name: str) -> np.ndarray:
    """[H, W] or [H, W, C] of a Pillow image of any mode."""
    try:
        picture = _upright(picture)
        if picture.mode in SIXTEEN_BIT_MODES:
            return np.array(picture).clip(0, 65535).astype(np.uint16)
        if picture.mode == "F" or (len(picture.getbands()) == num_channels and num_channels not in (1, 3)):
            return np.array(picture)
        if num_channels not in (1, 3):
            raise ValueError(f"{name} is a {picture.mode} picture; expected {num_channels} channels, pass an array.")
        if picture.mode in ("P", "PA"):
            picture = picture.convert("RGBA")  # straight to RGB, Pillow would mistake a palette with transparency
        # a grey picture stays one channel: it is cheaper to resize and broadcasts later
        grey = num_channels == 1 or picture.mode in ("1", "L", "LA", "La")
        return np.array(picture.convert("L" if grey else "RGB"))
    except OSError as error:
        raise ValueError(f"{name} cannot be decoded ({error}); it may be damaged or cut off.") from error


def _channels_first(array: np.ndarray, num_channels: int, data_format: str | None, name: str) -> np.ndarray:
    if array.ndim == 2:
        return array[None]  # [1, H, W]
    if array.ndim != 3:
        raise ValueError(f"{name} has {array.ndim} dimensions; expected [H, W], [H, W, C] or [C, H, W].")
    layouts = {"channels_first": array.shape[0], "channels_last": array.shape[2]}
    if data_format is not None:
        chosen = str(getattr(data_format, "value", data_format))  # an enumeration member or the word itself
        if chosen not in layouts:
            raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last', got {chosen!r}.")
        layouts = {chosen: layouts[chosen]}
    for wanted in (num_channels, 1):
        for layout, found in layouts.items():
            if found == wanted:
                return array if layout == "channels_first" else np.moveaxis(array, 2, 0)
    raise ValueError(
        f"{name} has shape {tuple(array.shape)}, in which no channel axis has {num_channels} or 1 channels; "
        f"drop the extra channels, or set image_mean, image_std and num_channels to the images' channels."
    )


def _eight_bit_or_float(array: np.ndarray, name: str) -> np.ndarray:
    kind = array.dtype.kind
    if kind == "f":
        return array.astype(np.float32, copy=False)
    if kind == "b":
        return array.astype(np.uint8) * 255
    if kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype} values; expected integers or floats.")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        span = f"from {array.min()} to {array.max()}"
        raise ValueError(f"{name} holds {array.dtype} values {span}; expected 0..255, uint16 or floats.")
    return array.astype(np.uint8, copy=False)


def _as_tensor(array: np.ndarray) -> Tensor:
    usable = array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else np.array(array, dtype=array.dtype.newbyteorder("=")))
