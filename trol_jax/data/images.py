"""Picture files to arrays."""

import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trol_jax.errors import UserError

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no format that runs another program, as EPS does


def load_image(source: str | os.PathLike | bytes | Image.Image) -> np.ndarray:
    """uint8[height, width, 3] of a picture of any mode, upright as its EXIF orientation says.

    Transparent parts are white, 16-bit grey is scaled to 8 bits, of an animation the first frame counts.
    UserError that names the file for one that is missing, no picture, damaged, or larger than 40 megapixels.
    """
    name = "the picture" if isinstance(source, bytes | Image.Image) else os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, name)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return _pixels(image, name)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except Exception as error:  # decoders of damaged files raise anything: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name} is a damaged picture: {error}") from error


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[height, width, 3] -> uint8[size, size, 3]; bicubic with antialiasing, the aspect ratio is lost."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:  # the header is read, the pixels are not yet decoded
        raise UserError(f"{name} is {image.width} x {image.height}, more than {MAX_PIXELS:,} pixels; make it smaller")
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point pixels, whose scale is not known; save it with 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.float32) / 257
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
