"""Picture files to arrays, and those to what a vision tower takes."""

import contextlib
import ctypes
import dataclasses
import functools
import io
import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trol_jax.data.paths import open_regular
from trol_jax.errors import StorageError, UserError
from trol_jax.retry import may_pass, of_machine, retry

MAX_PIXELS = 40_000_000
MAX_BYTES = 512 << 20  # of a file: more than so many pixels take in any format
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
ORIENTATION = 0x0112  # of EXIF; 5 to 8 stand for pictures that lie on a side
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # Pillow's, before our own error
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no format that runs another program, as EPS does


def load_image(source: str | os.PathLike | bytes | Image.Image) -> np.ndarray:
    """uint8[height, width, 3] of a picture of any mode, upright as its EXIF orientation says.

    Transparent parts are white, 16-bit grey is scaled to 8 bits, of an animation the first frame counts.
    UserError that names the file for one that is missing, no picture, damaged, or larger than 40 megapixels.
    """
    name = "the picture" if isinstance(source, bytes | Image.Image) else os.fspath(source)
    if isinstance(source, Image.Image):
        with _explained(name):
            return _pixels(source, name)
    with _explained(name):
        data = source if isinstance(source, bytes) else read_file(source)
    with _opened(data, name) as image:
        return _pixels(image, name)


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a picture. Errors as of `load_image`; also for what is no file, and for more than `MAX_BYTES`."""

    def read() -> bytes:
        with _file(path) as file:
            return file.read(MAX_BYTES)

    with _explained(os.fspath(path)):
        return retry(read)


def _file(source: str | os.PathLike | bytes) -> BinaryIO:
    """To read a picture from."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    file = open_regular(source)
    if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
        file.close()
        raise UserError(f"{os.fspath(source)} has {size:,} bytes, no picture that is decoded has; make it smaller")
    return file


@contextlib.contextmanager
def _opened(source: str | os.PathLike | bytes, name: str):
    with _explained(name), _file(source) as file, Image.open(file, formats=FORMATS) as image:
        yield image


@contextlib.contextmanager
def _explained(name: str):
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except Exception as error:
        if may_pass(error) or of_machine(error):
            said = getattr(error, "strerror", None) or "out of memory"
            raise StorageError(f"{name} cannot be read: {said}") from error
        # decoders of damaged files raise anything: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name} is a damaged picture: {error}") from error


@dataclasses.dataclass(frozen=True)
class Header:
    """format: one of FORMATS, by content; height, width: of what `load_image` gives."""

    format: str
    height: int
    width: int


def read_header(source: str | os.PathLike | bytes) -> Header:
    """What a picture says of itself before its pixels. Errors as of `load_image`, but for damaged pixels and size."""
    name = "the picture" if isinstance(source, bytes) else os.fspath(source)
    with _explained(name):
        return retry(_header, source)


def _header(source: str | os.PathLike | bytes) -> Header:
    with _file(source) as file, Image.open(file, formats=FORMATS) as image:
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)  # Pillow turns TIFFs
        kind = "JPEG" if image.format == "MPO" else image.format  # several JPEGs, of which the first counts
        return Header(kind, *((image.width, image.height) if turned else (image.height, image.width)))


def try_to_decode(source: str | os.PathLike | bytes, name: str = "the picture") -> None:
    """UserError for a picture whose pixels are damaged. All bytes of a JPEG are read, an eighth of a side is made.

    name: of one that is given as bytes.
    """
    name = name if isinstance(source, bytes) else os.fspath(source)
    with _opened(source, name) as image:
        check_pixels(image.height, image.width, name)
        image.draft(None, (1, 1))
        image.load()


def keep_freed_memory() -> None:
    """Once in a program that reads many pictures: glibc, which gives the memory of each back to the system, keeps it.

    Clearing its pages anew takes twice as long as decoding. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for option, size in ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 256 << 20)):
            library.mallopt(option, size)


def upright_size(source: str | os.PathLike | bytes) -> tuple[int, int]:
    """(height, width) of what `load_image` gives, from the header alone. Errors as there, but for damaged pixels."""
    name = "the picture" if isinstance(source, bytes) else os.fspath(source)
    header = read_header(source)
    check_pixels(header.height, header.width, name)
    return header.height, header.width


def tiles_of(height: int, width: int, family: str, size: int, max_tiles: int) -> int:
    """How many tiles `prepare` makes of a picture of this size."""
    if family == "internlm2":
        return 1
    columns, rows = grid(height, width, size, max_tiles)
    return columns * rows + (columns * rows > 1)


def prepare(image: np.ndarray, family: str, size: int, max_tiles: int) -> np.ndarray:
    """uint8[height, width, 3] -> uint8[M, size, size, 3], as the original does it for the family.

    internlm2: one picture, squeezed to a square. phi3: up to `max_tiles` tiles, and the whole picture after several.
    """
    return squeeze(image, size)[None] if family == "internlm2" else tile(image, size, max_tiles)


def tile(image: np.ndarray, size: int, max_tiles: int) -> np.ndarray:
    """The picture, resized to a grid of squares that is nearest in shape, square by square; then the whole, small.

    Source: utils/utils.py of the original, dynamic_preprocess.
    """
    height, width = image.shape[:2]
    columns, rows = grid(height, width, size, max_tiles)
    whole = Image.fromarray(image)
    large = np.asarray(whole.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    tiles = large.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if len(tiles) == 1:
        return tiles
    return np.concatenate([tiles, np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC))[None]])


def grid(height: int, width: int, size: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows), at most `max_tiles` together, whose ratio is nearest to the picture's.

    Of equally near ones a larger is taken if the picture has more than half of its pixels.
    """
    numbers = range(1, max_tiles + 1)
    grids = sorted(((c, r) for c in numbers for r in numbers if c * r <= max_tiles), key=lambda g: g[0] * g[1])
    best, least = (1, 1), float("inf")
    for columns, rows in grids:
        far = abs(width / height - columns / rows)
        if far < least or (far == least and width * height > 0.5 * size**2 * columns * rows):
            best, least = (columns, rows), far
    return best


def squeeze(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[height, width, 3] -> uint8[size, size, 3], the aspect ratio is lost.

    Bicubic without antialiasing, exactly as torch.nn.functional.interpolate does it on bytes: a = -0.75, weights of 16
    bits, first along the rows, then along the columns, rounded to bytes after each.
    """
    for _ in range(2):  # axis 0 is that of the sums, which run over whole lines of memory
        image = np.asarray(Image.fromarray(image).transpose(Image.Transpose.TRANSPOSE))
        if len(image) != size:
            lines = _weights(len(image), size) @ image.reshape(len(image), -1).astype(np.float32)
            lines += 0.5
            image = np.clip(lines, 0, 255, out=lines).astype(np.uint8).reshape(size, -1, 3)
    return image


@functools.lru_cache(1024)
def _weights(old: int, new: int):
    """Sparse float32[new, old] that grows a line of `old` pixels to `new`.

    Weights are whole multiples of 2**-15 or more, and four of them times bytes stay below 2**24 multiples: float32 adds
    them without rounding.
    """
    from scipy.sparse import csr_array  # a quarter of a second

    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centre)
    t, a = centre - first, -0.75
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1  # noqa: E731
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a  # noqa: E731
    weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], axis=1)
    places = np.clip(first.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32), 0, old - 1)
    largest = 0.0  # as torch meets it while it adds, which at the right border may be more than what remains
    for k in range(4):  # beyond the border the last pixel counts again: its weights are added before they are rounded
        for j in range(k):
            again = places[:, j] == places[:, k]
            weights[:, j] += np.where(again, weights[:, k], 0)
            weights[:, k] = np.where(again, 0, weights[:, k])
        largest = max(largest, weights[:, : k + 1].max())
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    rounded = np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)) / (1 << bits)
    return csr_array((rounded.astype(np.float32).ravel(), places.ravel(), np.arange(new + 1) * 4), shape=(new, old))


def check_pixels(height: int, width: int, name: str) -> None:
    """UserError for a picture that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} is {width} x {height}, more than {MAX_PIXELS:,} pixels; make it smaller")


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    check_pixels(image.height, image.width, name)  # the header is read, the pixels are not yet decoded
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
