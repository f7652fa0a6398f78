"""Odd image files, what becomes of each, and the tables of docs/data.md: `python tests/data/odd.py` writes them anew."""

import gzip
import io
import pathlib
import re
import struct
import tempfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from eqx_shortcut.data.errors import BadImage, DataError
from eqx_shortcut.data.formats.folder import LEFT_BEHIND, UNFINISHED, UNNAMED, open_folder
from eqx_shortcut.data.formats.labels import NAMES
from eqx_shortcut.data.parts import FILLERS, WORDS
from eqx_shortcut.data.preprocess import CONVERT, FORMATS, decode
from stored import PIXELS, PNGS, encode, png_of_16_bits

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"

RGB, NEXT = PIXELS[0], PIXELS[1]
GREY = RGB[..., 0]
SMOOTH = np.broadcast_to(np.arange(120, 149, dtype=np.uint8)[:, None], (20, 29, 3))
"""A picture that lossy formats keep to a few grey levels."""


class Odd(NamedTuple):
    """An image file, and the pixels that it stands for, if it is to be used."""

    suffix: str
    content: bytes
    pixels: np.ndarray | None = None
    within: int = 0
    """Grey levels."""


def saved(image: PIL.Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def announcing(width: int, height: int) -> bytes:
    """A PNG whose header tells of another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + PNGS[0][24:29]
    return PNGS[0][:12] + header + struct.pack(">I", zlib.crc32(header)) + PNGS[0][33:]


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def animated(format: str) -> bytes:
    first, second = (PIL.Image.fromarray(three(pixels[..., 0])) for pixels in (RGB, NEXT))
    return saved(first, format, save_all=True, append_images=[second], **({"lossless": True} if format == "WEBP" else {}))


def turned(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encode(SMOOTH, "jpeg", exif=exif)


def tiff_of_16_bits() -> bytes:
    """An RGB TIFF that Pillow reads, cut down to 8 bits, and cannot write."""
    entries = [
        (256, 3, 4),
        (257, 3, 4),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 2),
        (273, 4, 8),
        (277, 3, 3),
        (278, 3, 4),
        (279, 4, 96),
    ]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries if tag != 258)
    bits = struct.pack("<HHII", 258, 3, 3, 8 + 96 + 2 + 12 * len(entries) + 4)
    fields = fields[:24] + bits + fields[24:]
    return (
        b"II*\0"
        + struct.pack("<I", 104)
        + bytes(range(96))
        + struct.pack("<H", 9)
        + fields
        + bytes(4)
        + struct.pack("<HHH", 16, 16, 16)
    )


PALETTE = PIL.Image.fromarray(RGB).quantize(16)
FEW = np.asarray(PALETTE.convert("RGB"))
ALPHA = np.concatenate([RGB, GREY[..., None]], axis=-1)
JPEG = encode(SMOOTH, "jpeg")
ODD = {
    "grey JPEG": Odd(".jpg", encode(SMOOTH[..., 0], "jpeg"), SMOOTH, 3),
    "progressive JPEG": Odd(".jpg", encode(SMOOTH, "jpeg", progressive=True), SMOOTH, 3),
    "JPEG of a camera that holds two pictures (MPO): the first": Odd(
        ".jpg", saved(PIL.Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[PIL.Image.fromarray(NEXT)]), SMOOTH, 3
    ),
    "JPEG in CMYK, whose colours depend on a profile": Odd(".jpg", encode(RGB, "jpeg", "CMYK")),
    "JPEG with the tag of a camera turned by 90 degrees: the tag is ignored": Odd(".jpg", turned(6), SMOOTH, 3),
    "JPEG with the tag of a mirrored picture: the tag is ignored": Odd(".jpg", turned(2), SMOOTH, 3),
    "JPEG with bytes behind its end": Odd(".jpg", JPEG + b"more", SMOOTH, 3),
    "JPEG called .png": Odd(".png", JPEG, SMOOTH, 3),
    "JPEG called .txt": Odd(".txt", JPEG, SMOOTH, 3),
    "JPEG called .jfif": Odd(".jfif", JPEG, SMOOTH, 3),
    "JPEG without a suffix": Odd("", JPEG, SMOOTH, 3),
    "JPEG cut short": Odd(".jpg", JPEG[:-200]),
    "JPEG of which the header alone is there": Odd(".jpg", JPEG[:40]),
    "PNG called .jpg": Odd(".jpg", PNGS[0], RGB),
    "PNG of black and white": Odd(".png", encode(GREY > 128), three(np.where(GREY > 128, 255, 0))),
    "PNG in grey": Odd(".png", encode(GREY), three(GREY)),
    "PNG in grey and alpha: alpha is dropped": Odd(".png", encode(np.stack([GREY, RGB[..., 1]], -1)), three(GREY)),
    "PNG with alpha: alpha is dropped": Odd(".png", encode(ALPHA), RGB),
    "PNG with a palette": Odd(".png", saved(PALETTE, "PNG"), FEW),
    "PNG with a palette of transparent entries: they keep their colours": Odd(
        ".png", saved(PALETTE, "PNG", transparency=bytes(range(16))), FEW
    ),
    "PNG in grey of 16 bits": Odd(".png", encode(GREY.astype(np.uint16) << 8)),
    "PNG in RGB of 16 bits": Odd(".png", png_of_16_bits()),
    "PNG that moves: its first picture": Odd(".png", animated("PNG"), three(GREY)),
    "PNG cut short": Odd(".png", PNGS[0][:-200]),
    "PNG with a flipped bit": Odd(".png", PNGS[0][:200] + bytes([PNGS[0][200] ^ 1]) + PNGS[0][201:]),
    "PNG that announces 60,000 x 60,000 pixels": Odd(".png", announcing(60_000, 60_000)),
    "WebP": Odd(".webp", encode(RGB, "webp", lossless=True), RGB),
    "WebP that moves: its first picture": Odd(".webp", animated("WEBP"), three(GREY)),
    "GIF that moves: its first picture": Odd(".gif", animated("GIF"), three(GREY)),
    "GIF with a transparent colour: it keeps its colour": Odd(".gif", saved(PALETTE, "GIF", transparency=3), FEW),
    "BMP": Odd(".bmp", encode(RGB, "bmp"), RGB),
    "BMP with a palette": Odd(".bmp", saved(PALETTE, "BMP"), FEW),
    "TIFF": Odd(".tif", encode(RGB, "tiff"), RGB),
    "TIFF of several pages: the first": Odd(
        ".tiff", saved(PIL.Image.fromarray(RGB), "TIFF", save_all=True, append_images=[PIL.Image.fromarray(NEXT)]), RGB
    ),
    "TIFF in CMYK": Odd(".tif", encode(RGB, "tiff", "CMYK")),
    "TIFF in L*a*b*": Odd(".tif", encode(RGB, "tiff", "LAB")),
    "TIFF in grey of 16 bits": Odd(".tif", encode(GREY.astype(np.uint16) << 8, "tiff")),
    "TIFF in RGB of 16 bits": Odd(".tif", tiff_of_16_bits()),
    "TIFF of floats": Odd(".tif", encode(GREY.astype(np.float32), "tiff")),
    "PPM": Odd(".ppm", encode(RGB, "ppm"), RGB),
    "PPM of 16 bits": Odd(".ppm", b"P6 2 2 65535\n" + bytes(24)),
    "JPEG 2000": Odd(".jp2", encode(RGB, "jpeg2000"), RGB),
    "JPEG 2000 of 16 bits": Odd(".jp2", encode(GREY.astype(np.uint16) << 8, "jpeg2000")),
    "TGA": Odd(".tga", encode(RGB, "tga"), RGB),
    "HEIC, which Pillow does not read": Odd(".heic", b"\0\0\0\x18ftypheic" + bytes(99)),
    "one pixel": Odd(".png", encode(RGB[:1, :1]), RGB[:1, :1]),
    "20,000 x 3 pixels": Odd(".png", encode(np.resize(RGB, (3, 20000, 3))), np.resize(RGB, (3, 20000, 3))),
    "empty file": Odd(".jpg", b""),
    "web page called .jpg": Odd(".jpg", b"<html><body>404 Not Found</body></html>"),
    "web page": Odd(".html", b"<html><body>404 Not Found</body></html>"),
    "JPEG in gzip": Odd(".jpg.gz", gzip.compress(JPEG)),
    "icon": Odd(".ico", saved(PIL.Image.fromarray(RGB), "ICO")),
    "drawing (SVG)": Odd(".svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "download that is not whole": Odd(".jpg.part", JPEG[:-200]),
}


def outcome(odd: Odd) -> str:
    """What becomes of a file in a folder of images, in a few words."""
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name, f"file{odd.suffix}")
        path.write_bytes(odd.content)
        try:
            records = open_folder(path.parent)
        except DataError as error:
            return re.sub(r".*\(passed over: (.*) 1\).*", r"passed over, counted as “\1”", str(error))
    try:
        height, width, _ = decode(odd.content).shape
    except BadImage as error:
        # Numbers in brackets are counted differently by versions of Pillow.
        return f"refused or replaced: {re.sub(r' [(].*?[)]', '', str(error))}" if len(records) else "found and lost"
    return f"used, {width:,} x {height:,}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def tables() -> dict[str, str]:
    """The tables of the page, by name."""
    return {
        "formats": _table(
            ("format", "suffixes, in any case"),
            [(name, _code(suffixes)) for name, suffixes in FORMATS.items()] + [("not read: convert them", _code(CONVERT))],
        ),
        "names": _table(
            ("what", "names, in any case"),
            [
                ("labels: columns, arrays, features", _code(NAMES)),
                *((f"{part} part", _code(words)) for part, words in WORDS.items()),
                ("words beside them that are ignored", _code(FILLERS)),
                ("a folder that stands for what it holds, if it is alone", _code(UNNAMED)),
                ("passed over, as is all that begins with a dot", _code(sorted(map(repr, LEFT_BEHIND))).replace("'", "")),
                ("unfinished or spare copies, passed over", _code(UNFINISHED)),
            ],
        ),
        "odd": _table(("file", "what becomes of it"), [(name, outcome(odd)) for name, odd in ODD.items()]),
    }


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    for name, table in tables().items():
        mark = f"<!-- {name}, by tests/data/odd.py -->"
        page = re.sub(rf"{mark}\n.*?\n\n", lambda _, text=f"{mark}\n{table}\n\n": text, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
