"""From an encoded image to the square of bytes that a network is trained on, by the preprocessing of the original code."""

import functools
import io
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from .errors import BadImage

Encoded = bytes | np.ndarray
"""An image file of one of FORMATS, or an array of pixels."""

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "TGA": (".tga",),
}
"""Formats as Pillow calls them, with suffixes of their files. Not those that need another program, or are for icons."""
CONVERT = (".heic", ".heif")
"""Suffixes of images that Pillow does not read: refused by name, since a class of them would else be missing."""
SUFFIXES = frozenset([suffix for suffixes in FORMATS.values() for suffix in suffixes] + list(CONVERT))
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
RULE = "8-bit grey, palette or RGB is needed"


def square(encoded: Encoded, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The image decoded, cropped to its centre, resized and rounded to bytes: at most half a grey level from the original's.

    Raises BadImage if it cannot be decoded.
    """
    cropped = centre_crop(decode(encoded))
    return cropped if len(cropped) == size else np.rint(resize(cropped, size)).astype(np.uint8)


def decode(encoded: Encoded) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of an image: grey is repeated, a palette looked up, alpha dropped, a tag of orientation ignored, as TensorFlow does.

    Raises BadImage if it is damaged, of another format, in CMYK (whose colours depend on a profile) or of 16 bits.
    """
    return _decode_file(encoded) if isinstance(encoded, bytes) else _decode_array(encoded)


def _decode_file(encoded: bytes) -> UInt8[np.ndarray, "height width 3"]:
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(encoded), formats=_formats())
        # Pillow cuts RGB of 16 bits down to 8 without a word.
        if (bits := _bits(image, encoded)) > 8:
            raise BadImage(f"{bits} bits a channel, where {RULE}")
        image.load()
    except PIL.UnidentifiedImageError as error:
        raise BadImage("no image file, or of a format that is not read" if encoded else "an empty file") from error
    except BadImage:
        raise
    except Exception as error:  # decoders raise errors of many kinds for a damaged file
        raise BadImage(str(error) or type(error).__name__) from error
    if image.mode not in MODES:
        raise BadImage(f"colours of mode {image.mode}, where {RULE}")
    if "transparency" in image.info:  # Pillow warns of a palette that loses its transparent entries without this step
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


@functools.cache
def _formats() -> tuple[str, ...]:
    """The image formats that this Pillow reads."""
    import PIL.Image

    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _bits(image: Any, encoded: bytes) -> int:
    """Bits a channel, as the header has them."""
    if image.format == "PNG":
        return encoded[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "PPM":
        told = image.tile[0][3]
        return max(told[1], 1).bit_length() if isinstance(told, tuple) and isinstance(told[1], int) else 8
    if image.format == "JPEG2000":
        sizes = encoded.index(b"\xff\x51")  # the marker that gives the sizes, bits of the first component among them
        return (encoded[sizes + 40] & 127) + 1
    return 8


def is_image(path: str) -> bool:
    """Whether a file begins as an image, whatever its name. (A TGA file has no mark at its beginning.)"""
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=[name for name in _formats() if name != "TGA"]):
            return True
    except Exception:  # unreadable, of another kind, or damaged in its header
        return False


def _decode_array(pixels: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
        raise BadImage(f"an array of {pixels.dtype} of shape {pixels.shape}, where {RULE}")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = pixels.shape[-1]
    if channels > 4:
        raise BadImage(f"{channels} channels, where {RULE}")
    return np.repeat(pixels[..., :1], 3, axis=-1) if channels < 3 else pixels[..., :3]


def centre_crop(image: UInt8[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "side side channels"]:
    """The largest square around the centre; of an odd margin the larger half is cut at the bottom or on the right."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def resize(image: UInt8[np.ndarray, "height width channels"], size: int) -> Float[np.ndarray, "{size} {size} channels"]:
    """`tf.image.resize(antialias=True)`: bilinear, the triangle as wide as a new pixel where the image shrinks.

    It is Pillow's filter too, which computes it with floats, not rounded in between, for one channel of floats at a time.
    """
    import PIL.Image

    channels = np.moveaxis(image, -1, 0).astype(np.float32)
    resized = [PIL.Image.fromarray(channel).resize((size, size), PIL.Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized], axis=-1)
