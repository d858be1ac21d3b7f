"""What the compiler of the target itself says of a strategy, on a machine without one: whether it fits, and its memory.

TPUs are compiled for by libtpu (requirements-tpu.txt), GPUs by the plugin of CUDA with a description of the GPU
(requirements-gpu.txt). It takes minutes for a full model, so what it said is kept.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from trol_jax.errors import UserError
from trol_jax.sharding import cost, mesh, rules
from trol_jax.sharding.strategy import Strategy, build
from trol_jax.sharding.targets import H100_BYTES, Target

NEEDS = {"tpu": ("libtpu", "requirements-tpu.txt"), "cuda": ("jax-cuda13-pjrt", "requirements-gpu.txt")}
# Without the GPU, no tiles are tried out for Triton's products, and XLA finds none for some.
OPTIONS = {"tpu": {}, "cuda": {"xla_gpu_enable_triton_gemm": False}}
TPUS = {"v5e": "v5e", "v5p": "v5", "v6e": "v6e"}  # names of libtpu's
# As XLA describes it (openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb).
H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {H100_BYTES} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 23 patch: 0 }} device_description_str: "NVIDIA H100 80GB HBM3"
"""


def verdict(s: Strategy, target: Target) -> dict[str, Any]:
    """fits; bytes of one device: arguments, temporaries, peak; seconds it took; message, where it does not fit.

    UserError where what compiles for the target is not installed, does not know it, or fails.
    """
    kind = "tpu" if target.torus else "cuda"
    version = _require(kind)
    layout = rules.Layout.make(mesh.make_mesh(s.mesh, _devices(target)), s.rules)
    built = build(s, layout)
    lowered = built.function.lower(*built.inputs)
    key = "\n".join((target.name, kind, version, jax.__version__, lowered.as_text()))
    file = cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if file.exists():
        return _judged(json.loads(file.read_text()), target)
    start = time.monotonic()
    found = _compile(lowered, OPTIONS[kind]) | {
        "seconds": round(time.monotonic() - start, 1),
        "compiler": f"{kind} {version}",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(found))
    os.replace(part, file)
    return _judged(found, target)


def _judged(found: dict[str, Any], target: Target) -> dict[str, Any]:
    """The compiler of a TPU refuses what does not fit; that of a GPU only tells how much it takes."""
    return found if target.torus else found | {"fits": found["fits"] and found["peak"] <= target.chip.memory}


def cache() -> Path:
    """Where verdicts are kept."""
    own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(own, "trol_jax", platform.node(), "verdicts")


def _require(kind: str) -> str:
    package, file = NEEDS[kind]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{package} is not installed, which compiles for this target; install {file}") from None


def _devices(target: Target):
    # No metadata server is asked, and several processes may compile at once.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    family, _, _ = target.name.replace("x", "-").partition("-")
    sides = "x".join(map(str, target.torus))
    try:
        if family in TPUS:
            alone = {"chips_per_host_bounds": (1, 1, 1)} if target.devices == 1 else {}
            return topologies.get_topology_desc(
                platform="tpu", topology_name=f"{TPUS[family]}:{sides}", **alone
            ).devices
        if family == "h100":
            hosts = max(1, target.devices // 8)
            shape = f"1x{hosts}x{target.devices // hosts}"
            return topologies.get_topology_desc(
                platform="cuda", topology_name="h100", topology=shape, target_config=H100
            ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"target {target.name} cannot be compiled for here: {_line(error)}") from error
    raise UserError(f"target {target.name} has no description for a compiler; h100 and TPUs have one")


def _compile(lowered, options: dict[str, Any]) -> dict[str, Any]:
    try:
        m = lowered.compile(compiler_options=options).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not re.search(r"RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
            raise UserError(f"the target's compiler failed: {_line(error)}") from error
        return {"fits": False, "message": _line(error)}
    held, temporary = m.argument_size_in_bytes, m.temp_size_in_bytes
    return {"fits": True, "arguments": held, "temporaries": temporary, "peak": cost.peak_bytes(m)}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
