"""Files that are no pictures, or pictures nobody should decode."""

import io
import struct
import zlib

from PIL import Image


def png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """A grey PNG with the header and compressed data given."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wide_header() -> bytes:
    """Announces 60,000 x 60,000 pixels in a few bytes."""
    return png(60_000, 60_000, zlib.compress(b"\0" * 100))


def thin() -> bytes:
    """60,000 pixels wide and one high, and really so."""
    return png(60_000, 1, zlib.compress(b"\0" * 60_001))


def bomb(size: int = 9_000) -> bytes:
    """81 million pixels in 80 KB."""
    return png(size, size, zlib.compress(b"\0" * (size * (size + 1)), 9))


def text_bomb() -> bytes:
    """A small picture whose comment unpacks to 50 MB."""
    content = b"c\0\0" + zlib.compress(b"a" * 50_000_000, 9)
    comment = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return png(8, 8, zlib.compress(b"\0" * 72), comment)


def overlong_data() -> bytes:
    """A small header before data that unpacks to 100 MB."""
    return png(8, 8, zlib.compress(b"\0" * 100_000_000, 9))


def turned() -> bytes:
    """A JPEG of 64 x 32 that is to be shown upright, 32 x 64."""
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), "green").save(content, "JPEG", exif=exif)
    return content.getvalue()
