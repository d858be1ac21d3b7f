"""Environment of every test, set here because JAX reads it once, on start.

The CPU, seen as eight devices, and programs compiled without optimisation: that halves the time of the suite, most of
which is compilation.
"""

import gc
import os

import compile_fast
import programs

gc.set_threshold(100_000, 50, 50)  # JAX makes and drops objects by the million: a tenth of the time went into looking

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("JAX_NUM_CPU_DEVICES", None)
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = f"--xla_force_host_platform_device_count=8 {compile_fast.FLAGS}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

LONGEST = ("test_train", "test_traversal", "test_parity", "test_convert", "test_step", "test_answer")


def pytest_collection_modifyitems(items):
    """The longest files first, so that two processes end at about the same time."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_sessionfinish():
    programs.stop()
