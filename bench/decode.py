"""Speed of reading pictures for training, on one core, against what Pillow alone takes, measured in the same run.

    python -m launch.bench decode [--width=640] [--height=480] [--pictures=32] [--repeat=7]

Time is that of the process on its core, of the fastest of several rounds over all pictures.
"""

import io
import time
from collections.abc import Callable

import numpy as np
from absl import flags
from PIL import Image

from trol_jax.data.images import keep_freed_memory, load_image, prepare

WIDTH = flags.DEFINE_integer("width", 640, "Pixels.", lower_bound=16)
HEIGHT = flags.DEFINE_integer("height", 480, "Pixels.", lower_bound=16)
PICTURES = flags.DEFINE_integer("pictures", 32, "How many.", lower_bound=1)
REPEAT = flags.DEFINE_integer("repeat", 7, "Rounds, of which the fastest counts.", lower_bound=1)
SIZE = 490  # pixels a side of what CLIP takes
BICUBIC = Image.Resampling.BICUBIC


def run() -> None:
    keep_freed_memory()
    files = [photograph(number, WIDTH.value, HEIGHT.value) for number in range(PICTURES.value)]
    size = sum(map(len, files)) / len(files) / 1e3
    print(f"{WIDTH.value} x {HEIGHT.value}, JPEG, {size:.0f} KB; Pillow {Image.__version__}, numpy {np.__version__}")
    print(f"{'':<34} {'ms':>7} {'a second':>9} {'time of bare':>13}")
    ways = {
        "bare: decode, Pillow's resize": bare,
        "decode": load_image,
        f"decode, prepare for CLIP {SIZE}": lambda file: prepare(load_image(file), "internlm2", SIZE, 1),
        "the same of a draft, other pixels": lambda file: prepare(np.asarray(draft(file)), "internlm2", SIZE, 1),
        "decode, prepare tiles of 448": lambda file: prepare(load_image(file), "phi3", 448, 6),
    }  # fmt: skip
    taken = {name: seconds(way, files) for name, way in ways.items()}
    least = next(iter(taken.values()))
    for name, each in taken.items():
        print(f"{name:<34} {each * 1e3:>7.2f} {1 / each:>9.0f} {each / least:>13.2f}")


def photograph(seed: int, width: int, height: int) -> bytes:
    """JPEG of quality 90: waves of colour, soft spots and fine noise, which take the bits of a photograph."""
    rng = np.random.default_rng(seed)
    y, x, c = np.ogrid[:height, :width, :3]
    waves = 127 + 80 * np.sin(x / (40 + 20 * c) + seed) + 40 * np.cos(y / (30 + 9 * c))
    spots = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize(
        (width, height), BICUBIC
    )
    pixels = waves + 0.5 * (np.asarray(spots, np.float32) - 128) + rng.normal(0, 8, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def bare(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB").resize((SIZE, SIZE), BICUBIC)


def draft(file: bytes) -> Image.Image:
    """The picture as its decoder makes it at half the size, a quarter or an eighth, but not below SIZE."""
    image = Image.open(io.BytesIO(file))
    image.draft("RGB", (SIZE, SIZE))
    return image


def seconds(way: Callable[[bytes], object], files: list[bytes]) -> float:
    """Of one file."""
    rounds = []
    for _ in range(REPEAT.value):
        start = time.process_time()
        for file in files:
            way(file)
        rounds.append(time.process_time() - start)
    return min(rounds) / len(files)
