"""Which code it was: the version, and a digest of those sources that decide what is answered, or what it scores."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import trol_jax

HERE = Path(__file__).parent
ANSWERING = (
    *("ops/*.py", "models/*.py", "infer/*.py"),
    *("data/images.py", "data/prompts.py", "data/tokenizer.py"),
    *("evals/ask.py", "evals/instructions.py"),  # what readers make of files is in the digest of each question
)
SCORING = ("evals/*.py", "evals/benchmarks/*.py")


def of(sources: Sequence[str], folder: Path = HERE) -> str:
    """As "0.1.0+6c1f09ab". sources: patterns below the folder."""
    return f"{trol_jax.__version__}+{digest(tuple(sources), folder)}"


@functools.cache
def digest(sources: tuple[str, ...], folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted({path for pattern in sources for path in folder.glob(pattern)}):
        data = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode() + data)
    return found.hexdigest()[:8]
