"""The low-rank pairs of a run as an adapter of PEFT."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import fixtures
import programs
from convert import engine, peft
from trol_jax.errors import UserError
from trol_jax.train.merge import merge

TABLE = (
    (r"projector/.*|decoder/gate_.*", "train"),
    (r"decoder/layers/block/(qkv|out|gate|down)/kernel", "lora"),
    (".*", "freeze"),
)
ALL = ((r"decoder/layers/block/.*/kernel", "lora"), (".*", "freeze"))


@pytest.fixture(params=["internlm2", "phi3"])
def family(request):
    with fixtures.nano_variants():
        yield request.param


@pytest.mark.parametrize("table", [TABLE, ALL])
def test_base_and_adapter_are_the_merged_model(family, table, tmp_path, caplog):
    """W + alpha / r * B @ A of every matrix, in the released layout."""
    run, _ = fixtures.save_adapted(tmp_path, family, table)
    merge(run, tmp_path / "merged")
    for name in ("base", "merged"):
        engine.to_hf(tmp_path / name, tmp_path / f"hf_{name}")
    told = peft.to_peft(run, tmp_path / "adapter")
    pairs = load_file(tmp_path / "adapter" / peft.WEIGHTS)
    config = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    assert told.startswith(f"{len(pairs)} matrices for ")
    assert ("decoder/gate_bias" in caplog.text) == (table is TABLE) and "trained beside" not in caplog.text
    assert config["base_model_name_or_path"] is None
    base, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("hf_base", "hf_merged"))
    adapted = 0
    for name, expected in whole.items():
        if name.startswith(("vision_proj", "model.vision_proj")):
            continue  # trained whole
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in pairs:
            a, b = (pairs.pop(f"{module}.lora_{half}.weight") for half in "AB")
            (target,) = (each for each in config["target_modules"] if module.endswith(f".{each}"))
            rank, alpha = config["rank_pattern"].get(target, 2), config["alpha_pattern"].get(target, 4.0)
            assert (rank, len(a), b.shape[1]) == (rank, rank, rank)
            np.testing.assert_allclose(base[name] + alpha / rank * b @ a, expected, rtol=1e-5, atol=1e-6, err_msg=name)
            assert not np.allclose(base[name], expected, atol=1e-3)
            adapted += 1
        else:
            np.testing.assert_array_equal(base[name], expected, err_msg=name)
    assert not pairs and adapted >= 8


def test_a_quantised_base_is_told(tmp_path, caplog):
    table = (
        *TABLE[:1],
        (r"decoder/layers/block/(qkv|out)/kernel", "lora nf4"),
        ("decoder/layers/block/up/kernel", "int8"),
        TABLE[-1],
    )
    with fixtures.nano_variants():
        run, _ = fixtures.save_adapted(tmp_path, "phi3", table)
        peft.to_peft(run, tmp_path / "adapter")
    assert "the pairs were trained beside kernels in nf4: " in caplog.text


def test_the_command_line(tmp_path):
    with fixtures.nano_variants():
        run, _ = fixtures.save_adapted(tmp_path, "phi3", ALL)
    flags = ["--to=peft", f"--src={run}", f"--dst={tmp_path / 'adapter'}"]
    status, out, _ = programs.Program(programs.launch("convert"), *flags, "--dry_run").wait()
    assert status == 0 and "mlp.gate_up_proj.lora_A.weight  float32[4, " in out and not (tmp_path / "adapter").exists()
    status, out, errors = programs.Program(programs.launch("convert"), *flags, "--dtype=float16").wait()
    assert status == 0, errors
    assert {array.dtype for array in load_file(tmp_path / "adapter" / peft.WEIGHTS).values()} == {np.dtype(np.float16)}


def test_a_run_without_pairs_is_told(family, tmp_path):
    fixtures.save_run(tmp_path / "whole", family)
    with pytest.raises(UserError, match="has no low-rank pairs; write the whole model with --to=hf"):
        peft.to_peft(tmp_path / "whole", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
