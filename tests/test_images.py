"""Pictures: every mode becomes RGB, and bad files are named."""

import errno
import io
import json
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from trol_jax.data import images
from trol_jax.data.images import grid, load_image, prepare, squeeze
from trol_jax.errors import StorageError, UserError
from trol_jax.models.variants import INTERN_VIT_300M
from trol_jax.ops.image import normalize

GOLDEN = pathlib.Path(__file__).parent / "data" / "golden" / "preprocess"
RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [153, 153, 153]]], np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels; there are none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_path_bytes_and_a_picture_are_the_same(tmp_path):
    image = Image.fromarray(RGB)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), image):
        pixels = load_image(source)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("mode", ["P", "RGBA", "RGBX", "1", "L", "LA"])
def test_modes_keep_what_they_can_hold(mode):
    image = Image.fromarray(RGB)
    grey = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=-1)
    expected = {"1": np.asarray(image.convert("1").convert("RGB")), "L": grey, "LA": grey}.get(mode, RGB)
    converted = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
    np.testing.assert_array_equal(load_image(converted), expected)
    if mode != "RGBX":
        np.testing.assert_array_equal(load_image(encoded(converted)), expected)


def test_cmyk_ycbcr_and_animations():
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    for mode in ("CMYK", "YCbCr"):
        pixels = load_image(encoded(red.convert(mode), "JPEG", quality=95))
        assert np.abs(pixels.astype(int) - (200, 30, 30)).max() < 12
    blue = Image.new("RGB", (8, 8), (0, 0, 255))
    animation = encoded(red, "GIF", save_all=True, append_images=[blue])
    np.testing.assert_array_equal(load_image(animation), np.full((8, 8, 3), (200, 30, 30), np.uint8))


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    np.testing.assert_array_equal(load_image(encoded(clear)), [[[255, 255, 255], [10, 20, 30]]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):
        pixels = load_image(encoded(palette, transparency=transparency))
        np.testing.assert_array_equal(pixels, [[[255, 255, 255], [40, 50, 60]]])


def test_sixteen_bits_are_scaled_to_eight():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for source in (encoded(Image.fromarray(levels)), Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        np.testing.assert_array_equal(load_image(source)[..., 0], [[0, 1, 128, 255]])


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(RGB), exif=exif)), np.rot90(RGB, -1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_size_in_the_header_is_that_of_the_upright_picture(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for options in ({}, {"compression": "tiff_lzw"} if format == "TIFF" else {}):
        file = encoded(Image.fromarray(RGB), format, exif=exif, **options)
        assert images.upright_size(file) == load_image(file).shape[:2] == ((2, 3) if orientation == 3 else (3, 2))


def test_a_large_jpeg_is_decoded_in_full():
    noise = Image.effect_noise((1600, 1200), 60).convert("RGB")
    file = encoded(noise, "JPEG", quality=90)
    np.testing.assert_array_equal(load_image(file), np.asarray(Image.open(io.BytesIO(file))))


@pytest.mark.parametrize("size", [(10_000, 10_000), (14_000, 14_000), (8_000, 5_001), (40_000_001, 1)])
def test_too_many_pixels_are_refused_before_decoding(size, tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_png(*size))
    with pytest.raises(UserError, match=r"huge\.png .* 40,000,000 pixels"):
        load_image(tmp_path / "huge.png")


def test_bad_files_are_named(tmp_path):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    for name, content, message in (
        ("text.png", b"hello", "is not a picture"),
        ("empty.png", b"", "is not a picture"),
        ("cut.png", whole[: len(whole) // 2], "is a damaged picture"),
        ("flipped.png", whole[:3000] + bytes([whole[3000] ^ 255]) + whole[3001:], "is a damaged picture"),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} {message}"):
            load_image(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot be read"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="the picture is not a picture"):
        load_image(b"hello")
    with pytest.raises(UserError, match="floating-point"):
        load_image(Image.new("F", (2, 2)))


def test_a_pipe_and_a_file_larger_than_pictures_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # takes no room on the disk
    for name, said in (
        ("pipe.png", "pipe.png cannot be read: it is a folder, a pipe"),
        ("large.png", "536,870,913 bytes"),
    ):
        for read in (load_image, images.read_file, images.upright_size, images.try_to_decode):
            with pytest.raises(UserError, match=said):
                read(tmp_path / name)


def test_a_picture_in_memory_may_be_too_large_too(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 5)
    with pytest.raises(UserError, match="3 x 2, more than 5 pixels"):
        load_image(Image.fromarray(RGB))


@pytest.mark.parametrize("family", ["internlm2", "phi3"])
def test_preparing_gives_the_size_and_keeps_what_fits(family):
    size = lambda image, size: prepare(image, family, size, 1)  # noqa: E731
    assert size(RGB, 16).shape == (1, 16, 16, 3)
    square = np.full((5, 5, 3), 7, np.uint8)
    np.testing.assert_array_equal(size(square, 5)[0], square)
    assert (size(square, 64) == 7).all()
    assert (size(np.full((1, 900, 3), 9, np.uint8), 4) == 9).all()


def recorded(name):
    return np.asarray(Image.open(GOLDEN / f"{name}.png"))


@pytest.mark.parametrize("number", [0, 2])
def test_squeezing_equals_the_original(number):
    np.testing.assert_array_equal(squeeze(recorded(f"clip_{number}_in"), 490), recorded(f"clip_{number}_resized490"))


# Checksums of what torch.nn.functional.interpolate (2.13, bicubic, to 490 x 490) makes of `pattern`.
@pytest.mark.parametrize(
    ("height", "width", "checksum"), [(489, 491, 1765198510), (3, 900, 3480286082), (1, 1, 2569116353)]
)
def test_squeezing_equals_torch_at_odd_sizes(height, width, checksum):
    y, x, c = np.ogrid[:height, :width, :3]
    pattern = ((7 * y * y + 13 * x * x + 91 * c) % 256).astype(np.uint8)
    assert zlib.crc32(np.ascontiguousarray(squeeze(pattern, 490))) == checksum


@pytest.mark.parametrize("size", [(480, 640), (980, 17), (1, 2), (333, 491)])
def test_sums_of_squeezing_are_exact(size):
    """Black and white dots make the largest sums; sums of float64 are exact."""
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (*size, 3))
    exact = image.astype(np.float64)
    for axis, old in ((1, size[1]), (0, size[0])):
        weights = images._weights(old, 490).toarray().astype(np.float64)
        exact = np.clip(np.floor(np.moveaxis(np.tensordot(weights, exact, (1, axis)), 0, axis) + 0.5), 0, 255)
    np.testing.assert_array_equal(squeeze(image, 490), exact)


def test_tiles_equal_the_original():
    tiles = prepare(recorded("tiles_1_in"), "phi3", 448, 6)
    np.testing.assert_array_equal(np.concatenate(list(tiles), axis=1), recorded("tiles_1_mosaic"))


@pytest.mark.parametrize("number", [0, 1])
def test_normalised_tiles_equal_the_original(number):
    expected = json.loads((GOLDEN / "preprocess.json").read_text())["tiles"][number]
    tiles = prepare(recorded(f"tiles_{number}_in"), "phi3", 448, 6)
    pixels = np.asarray(normalize(tiles, INTERN_VIT_300M.mean, INTERN_VIT_300M.std), np.float64)
    assert len(tiles) == expected["n"]
    np.testing.assert_allclose(pixels.mean((1, 2, 3)), expected["mean"], atol=1e-5)
    np.testing.assert_allclose(pixels.std((1, 2, 3), ddof=1), expected["std"], atol=1e-5)
    np.testing.assert_allclose(pixels[0, :2, :3].transpose(2, 0, 1), expected["first"], atol=1e-5)


def test_every_recorded_size_has_its_number_of_tiles():
    expected = json.loads((GOLDEN / "preprocess.json").read_text())["grids"]
    assert len(expected) > 10
    for size, count in expected.items():
        width, height = map(int, size.split("x"))
        columns, rows = grid(height, width, 448, 6)
        assert columns * rows + (columns * rows > 1) == count, size


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        *((OSError(n, os.strerror(n)), os.strerror(n)) for n in (errno.EMFILE, errno.ENOMEM)),
    ],
)
def test_a_machine_without_memory_or_open_files_makes_no_picture_bad(error, said, tmp_path, monkeypatch):
    def fails(*_):
        raise error

    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_file", fails)
    for read in (load_image, images.read_header, images.try_to_decode):
        with pytest.raises(StorageError, match=f"^{tmp_path}/a.png cannot be read: {said}$"):
            read(tmp_path / "a.png")
