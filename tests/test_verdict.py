"""What the compilers of targets say, and how it is kept."""

import importlib.metadata

import jax
import pytest

import programs
from fixtures import nano_variants
from programs import Program
from test_plan import FLAGS
from trol_jax.errors import UserError
from trol_jax.sharding import verdict
from trol_jax.sharding.strategy import Strategy
from trol_jax.sharding.targets import get_target

ONE = Strategy("nano_phi3", "decode", "data=1", "replicated", batch=2, length=8)


def test_what_is_missing_is_named(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError, match=r"libtpu is not installed.*requirements-tpu.txt"):
        verdict.verdict(ONE, get_target("v5e-1"))
    with pytest.raises(UserError, match=r"jax-cuda13-pjrt is not installed.*requirements-gpu.txt"):
        verdict.verdict(ONE, get_target("h100x8"))


def test_verdicts_are_kept_for_the_same_program(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdict, "_require", lambda kind: "1.0")
    monkeypatch.setattr(verdict, "_devices", lambda target: jax.devices()[:1])
    asked = []
    monkeypatch.setattr(
        verdict, "_compile", lambda lowered, options: asked.append(lowered) or {"fits": True, "peak": 7}
    )
    with nano_variants():
        said = [verdict.verdict(ONE, get_target(name)) for name in ("v5e-1", "v5e-1", "v6e-1")]
    assert len(asked) == 2 and said[0] == said[1] and said[0]["peak"] == 7
    assert not list(tmp_path.rglob("*.part"))


def test_too_little_memory_is_a_verdict():
    class Lowered:
        def __init__(self, message):
            self.message = message

        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(self.message)

    said = verdict._compile(Lowered("RESOURCE_EXHAUSTED: Ran out of memory on HBM:\n 36G of 15G"), {})
    assert said == {"fits": False, "message": "RESOURCE_EXHAUSTED: Ran out of memory on HBM: 36G of 15G"}
    with pytest.raises(UserError, match="the target's compiler failed: INTERNAL"):
        verdict._compile(Lowered("INTERNAL: bug"), {})


def test_a_gpu_fits_what_it_has_room_for():
    found = {"fits": True, "peak": 81 * 10**9}
    assert not verdict._judged(found, get_target("h100x8"))["fits"]
    assert verdict._judged(found, get_target("v5e-4")) is found
    assert "device_memory_size: 84942979072 " in verdict.H100


def test_targets_without_a_description():
    with pytest.raises(UserError, match="a100x8 has no description"):
        verdict._devices(get_target("a100x8"))


@pytest.mark.slow
@pytest.mark.parametrize(("package", "target"), [("libtpu", "v5e-8"), ("jax-cuda13-pjrt", "h100x8")])
def test_a_tiny_model_is_compiled_for_a_target(package, target, tmp_path):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    flags = [flag for flag in FLAGS if not flag.startswith("--target")]
    status, out, err = Program(
        programs.launch("plan"), *flags, f"--target={target}", "--rules=fsdp_tensor", "--compile",
        XDG_CACHE_HOME=str(tmp_path),
    ).wait()  # fmt: skip
    assert status == 0, err
    assert "GiB by the target's compiler" in out
