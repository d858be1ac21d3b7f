"""Conversion: exact both ways, everything accounted for, nothing half-written, from every layout."""

import json
import os
import shutil
import signal
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import fixtures
import golden
import programs
from convert import check, engine, files, hf_config, internlm2, phi3, torch_files
from programs import Program
from trol_jax import checkpoint, saved
from trol_jax.errors import UserError
from trol_jax.models import variants
from trol_jax.models.trol import TroL, abstract_params

LAYER = {"internlm2": "model.layers.1.attention.wo.ffn.weight",
         "phi3": "language_model.model.layers.1.self_attn.qkv_proj.weight"}  # fmt: skip


@pytest.fixture(params=golden.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def released(family, tmp_path):
    """A folder as released: weights, gate, config and tokeniser."""
    folder = tmp_path / "released"
    folder.mkdir()
    for source in (golden.ROOT / family, golden.ROOT / "tokenizer" / family):
        for path in source.iterdir():
            if path.name != "golden.npz":
                shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def conversions():
    """{family: its folder as released, converted}."""
    return {}


@pytest.fixture
def ours(family, released, tmp_path, tmp_path_factory, conversions):
    """What becomes of a folder as released: a copy of the one conversion of this file."""
    if family not in conversions:
        conversions[family] = tmp_path_factory.mktemp("converted") / family
        engine.to_jax(released, conversions[family])
    return shutil.copytree(conversions[family], tmp_path / "ours")


def rewrite(folder, change, name="model.safetensors"):
    """The weights as `change`, a function of the dict of tensors, leaves them."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def rewrite_config(folder, change):
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def tensors_of(folder):
    return load_file(folder / "model.safetensors") | torch_files.read(folder / "trol_gating.pt")


def same_tensors(one, other):
    assert list(one) == list(other) or one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


def refused(folder, *messages):
    with pytest.raises(UserError) as caught:
        engine.Source.open(folder)
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- there and back
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_there_and_back_every_file_is_the_same(released, tmp_path, dtype):
    rewrite(released, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
    engine.to_jax(released, tmp_path / "ours")
    engine.to_hf(tmp_path / "ours", tmp_path / "back")
    same_tensors(tensors_of(released), tensors_of(tmp_path / "back"))
    gates = (torch_files.read(folder / "trol_gating.pt") for folder in (released, tmp_path / "back"))
    assert len({tuple(gate) for gate in gates}) == 1  # in the same order
    assert {path.name for path in released.iterdir()} == {path.name for path in (tmp_path / "back").iterdir()}
    for path in released.iterdir():
        if path.suffix in (".json", ".model"):
            assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes(), path.name


def test_back_and_there_every_array_is_the_same(family, tmp_path):
    """From a run trained here, whose sizes, gates and tokeniser no release has."""
    with fixtures.nano_variants():
        run = fixtures.save_run(tmp_path / "run", family)
        engine.to_hf(run, tmp_path / "hf")
        engine.to_jax(tmp_path / "hf", tmp_path / "again")
        one, other = (checkpoint.resolve(path) for path in (run, tmp_path / "again"))
        stored = checkpoint.arrays_in(one)
        assert stored == checkpoint.arrays_in(other)
        for name in stored:
            mine, theirs = (checkpoint.open_array(step, name).read().result() for step in (one, other))
            assert mine.tobytes() == theirs.tobytes(), name
        here, there = saved.read(one), saved.read(other)
    assert here.model == there.model
    assert here.tokenizer.encode("a red circle <image>") == there.tokenizer.encode("a red circle <image>")


def test_weights_are_cast_on_request(released, tmp_path):
    engine.to_jax(released, tmp_path / "ours", np.dtype(ml_dtypes.bfloat16))
    step = checkpoint.resolve(tmp_path / "ours")
    assert {array.dtype for array in checkpoint.arrays_in(step).values()} == {jnp.dtype(jnp.bfloat16)}
    engine.to_hf(tmp_path / "ours", tmp_path / "back", np.dtype(np.float16))
    wanted = {k: v.astype(ml_dtypes.bfloat16).astype(np.float16) for k, v in tensors_of(released).items()}
    same_tensors(wanted, tensors_of(tmp_path / "back"))


def test_shards_and_torch_files_convert_alike(released, tmp_path):
    tensors = load_file(released / "model.safetensors")
    names = sorted(tensors)
    (released / "model.safetensors").unlink()
    wanted = arrays_of_torch_file(released, tensors)
    half = len(names) // 2
    shards = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, released / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (released / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = flatten(engine.Source.open(released).arrays(None, lambda done, total: None))
    assert found.keys() == wanted.keys()
    assert all(found[path].tobytes() == wanted[path].tobytes() for path in wanted)


def arrays_of_torch_file(folder, tensors):
    file = "pytorch_model.bin"
    torch_files.write(folder / file, tensors)
    arrays = engine.Source.open(folder).arrays(None, lambda done, total: None)
    made = flatten(arrays)
    (folder / file).unlink()
    return made


def flatten(arrays):
    return {path: lazy.make() for path, lazy in arrays.items()}


@pytest.mark.parametrize("family", ["internlm2"], indirect=True)  # InternViT never stored them
def test_row_numbers_of_old_files_come_back(released, tmp_path):
    numbers = np.arange(37)[None]
    rewrite(released, lambda tensors: tensors.update({engine.clip.ROW_NUMBERS: numbers}))
    engine.to_jax(released, tmp_path / "ours")
    engine.to_hf(tmp_path / "ours", tmp_path / "back")
    same_tensors(tensors_of(released), tensors_of(tmp_path / "back"))
    rewrite(released, lambda tensors: tensors.update({engine.clip.ROW_NUMBERS: numbers + 1}))
    refused(released, "position_ids", "should count 0, 1, 2")


# ---------------------------------------------------------------------- the gate
def test_gates_that_differ_are_kept_and_the_loss_is_told(released, tmp_path, caplog):
    gates = {name: array.copy() for name, array in torch_files.read(released / "trol_gating.pt").items()}
    gates["1.bias"] += 1
    torch_files.write(released / "trol_gating.pt", gates)
    assert not engine.to_jax(released, tmp_path / "ours").shared_gate
    stored = checkpoint.arrays_in(checkpoint.resolve(tmp_path / "ours"), "params/decoder/")
    assert stored["gate_bias"].shape == (3,)
    assert "gate" not in caplog.text
    engine.to_hf(tmp_path / "ours", tmp_path / "back")
    same_tensors(tensors_of(released), tensors_of(tmp_path / "back"))
    assert "the original PyTorch code loads only the last layer's" in caplog.text


# ---------------------------------------------------------------------- the audit
def test_everything_that_does_not_fit_is_told_at_once(released, family):
    def spoil(tensors):
        name = LAYER[family]
        tensors["model.extra"] = tensors.pop(name)
        norm = name.replace("1.self_attn.qkv_proj", "0.input_layernorm").replace("1.attention.wo.ffn", "0.ffn_norm")
        tensors[norm] = tensors[norm][:-1]
        other = name.replace(".1.", ".2.")
        tensors[other] = tensors[other].astype(np.float16)

    rewrite(released, spoil)
    refused(
        released, f"missing: {LAYER[family]}", "not known: model.extra", "has shape [31], config.json asks for [32]",
        "has a different dtype in different layers: float16, float32",
    )  # fmt: skip


def test_quantised_weights_are_refused(released, family):
    kinds = {LAYER[family].replace(".1.", f".{i}."): np.int8 for i in range(3)}
    rewrite(released, lambda t: t.update({name: t[name].astype(kind) for name, kind in kinds.items()}))
    refused(released, "int8, not a floating-point type")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "trol_gating.pt"])
def test_a_missing_file_is_named(released, name):
    (released / name).unlink()
    assert name in refused(released, str(released))


def test_weights_of_an_unknown_model_are_refused(released):
    rewrite(released, lambda tensors: [tensors.pop(name) for name in list(tensors)[1:]])
    refused(released, "has the tensors of no known model; looked for TroL, InternLM2")


def test_a_truncated_file_is_refused(released):
    path = released / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    refused(released, str(path), "is not a sound safetensors file")


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "", "..", "config.json"]
)
def test_an_index_that_points_elsewhere_is_refused(released, place):
    (released / "model.safetensors").rename(released.parent / "model.safetensors")
    (released / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    refused(released, f"names {place!r}, which is no weight file of its own folder: refused")


def test_a_link_out_of_the_folder_is_refused_and_one_of_the_hubs_cache_is_not(released, tmp_path):
    shard = "model-1.safetensors"
    names = list(load_file(released / "model.safetensors"))
    index = json.dumps({"weight_map": dict.fromkeys(names, shard)})
    (released / "model.safetensors.index.json").write_text(index)
    (tmp_path / "blobs").mkdir()
    (released / "model.safetensors").rename(tmp_path / "blobs" / "abc")
    (released / shard).symlink_to(tmp_path / "blobs" / "abc")
    refused(released, "is a link out of its folder: refused")
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.parent.mkdir()
    released.rename(snapshot)
    assert engine.Source.open(snapshot).config.name == "custom"


# ---------------------------------------------------------------------- config.json
def test_released_configs_are_those_of_the_variants():
    """The fields of the released config.json of TroL-7B, as published."""
    raw = {
        "bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "img_size": 490,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_length": 4096, "max_position_embeddings": 32768,
        "model_type": "internlm", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 1.0, "type": "dynamic"},
        "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.40.2", "use_cache": False, "vocab_size": 92544,
    }  # fmt: skip
    assert hf_config.read(raw, "internlm2", "config.json") == variants.VARIANTS["trol_7b"]


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_written_config_reads_back(name):
    config = variants.VARIANTS[name]
    assert hf_config.read(json.loads(hf_config.write(config)), config.family, "config.json") == config


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("internlm2", {"sliding": 3}, "config.json.sliding is not known (it is 3); known to be without effect: "),
        ("internlm2", {"hidden_act": "gelu"}, "config.json.hidden_act is 'gelu', only 'silu' is supported"),
        ("internlm2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type is 'linear'"),
        ("internlm2", {"num_hidden_layers": "3"}, "config.json.num_hidden_layers is '3'"),
        ("internlm2", {"vision_config": {"depth": 3}}, "config.json.vision_config.depth is not known"),
        ("internlm2", {"num_attention_heads": 3}, "hidden_size 32 is not a multiple of num_attention_heads 3"),
        ("internlm2", {"num_key_value_heads": 0}, "config.json.num_key_value_heads is 0"),
        ("internlm2", {"rms_norm_eps": float("nan")}, "config.json.rms_norm_eps is nan"),
        ("internlm2", {"image_token_index": 161}, "image_token_index 161 has no row in an embedding of 161"),
        ("internlm2", {"num_hidden_layers": 10**7}, "a model has at most 1,000 layers"),
        ("internlm2", {"img_size": 85}, "image size 85 is not a multiple of patch_size 14"),
        ("phi3", {"downsample_ratio": 1.0}, "downsample_ratio must be 0.5"),
        ("phi3", {"llm_config": {"rope_scaling": {"type": "su", "short_factor": [1.0]}}}, "have (1, 48) numbers"),
        ("phi3", {"ps_version": "v1"}, "config.json.ps_version is 'v1', only 'v2' is supported"),
        ("phi3", {"llm_config": {"sliding_window": 9}}, "llm_config.sliding_window is 9"),
        ("phi3", {"llm_config": {"rope_scaling": {"type": "su", "beta": 1}}}, "rope_scaling.beta is not known"),
        ("phi3", {"vision_config": {"qk_normalization": True}}, "qk_normalization is True, only False is supported"),
    ],
)
def test_a_field_that_is_not_understood_is_named(family, change, message):
    raw = json.loads((golden.ROOT / family / "config.json").read_text())
    with pytest.raises(UserError) as caught:
        hf_config.read(raw | change, family, "config.json")
    assert message in str(caught.value)


# ---------------------------------------------------------------------- starting points for training
def to_base(family, tensors):
    """The tensors under the names of the public bases, which have no gate and no row for the image token."""
    if family == "phi3":
        return {name.replace("vision_proj.", "mlp1."): array for name, array in tensors.items()}
    swap = {".ffn.weight": ".weight", ".lora_A.": ".Plora_A.", ".lora_B.": ".Plora_B."}
    made = {}
    for name, array in tensors.items():
        for theirs, ours in swap.items():
            name = name.replace(theirs, ours)
        made[name] = array[:-1] if name == "model.tok_embeddings.weight" else array
    return made


def test_a_public_base_becomes_a_starting_point_with_a_fresh_gate(released, family, tmp_path):
    whole = flatten(engine.Source.open(released).arrays(None, lambda done, total: None))
    tensors = to_base(family, load_file(released / "model.safetensors"))
    save_file(tensors, released / "model.safetensors")
    (released / "trol_gating.pt").unlink()
    if family == "internlm2":
        rewrite_config(released, lambda raw: raw.update(model_type="internlmxcomposer2"))
    config = engine.to_jax(released, tmp_path / "ours")
    assert config.shared_gate
    step = checkpoint.resolve(tmp_path / "ours")
    for path, expected in whole.items():
        array = checkpoint.open_array(step, f"params/{path}").read().result()
        if "gate_" in path:
            assert not array.any() and array.shape == expected.shape
        elif path == "decoder/embedding" and family == "internlm2":
            np.testing.assert_array_equal(array[:-1], expected[:-1])
            assert not array[-1].any()
        else:
            np.testing.assert_array_equal(array, expected, err_msg=path)


@pytest.mark.parametrize(("one", "other"), [(internlm2.RULES, internlm2.BASE_RULES), (phi3.RULES, phi3.BASE_RULES)])
def test_bases_and_releases_fill_the_same_parameters(one, other):
    assert sorted(path for rule in one for path in rule.ours) == sorted(path for rule in other for path in rule.ours)


# ---------------------------------------------------------------------- full sizes
@pytest.mark.parametrize("name", ["trol_1_8b", "trol_3_8b", "trol_7b"])
def test_every_parameter_of_the_full_sizes_has_its_tensors(name):
    """Shapes only: the released file has as many numbers as the model has parameters."""
    config = variants.VARIANTS[name]
    layout = next(layout for layout in engine.LAYOUTS if layout.family == config.family and layout.has_gate)
    ours = engine.shapes_of(config)
    plan = engine.moves(layout.rules + engine.gate.RULES, ours)
    assert sorted(path for move in plan for path in move.rule.ours) == sorted(ours)
    count = lambda shapes: sum(int(np.prod(shape)) for shape in shapes)  # noqa: E731
    assert count(shape for move in plan for _ in move.names for shape in move.released) == count(ours.values())


# ---------------------------------------------------------------------- what is written
def test_a_converted_checkpoint_goes_straight_into_a_sharding(released, ours, tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    stored = checkpoint.arrays_in(checkpoint.resolve(ours), "params/")

    def spread(array):
        axis = next((i for i, size in enumerate(array.shape) if size % 8 == 0), None)
        spec = jax.sharding.PartitionSpec(*(None,) * (axis or 0), *(["x"] if axis is not None else []))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    wanted = {path: spread(array) for path, array in stored.items()}
    nested = engine.unflatten_dict(wanted, sep="/")
    params = flatten_dict(checkpoint.restore_params(ours, nested), sep="/")
    whole = flatten(engine.Source.open(released).arrays(None, lambda done, total: None))
    for path, array in params.items():
        assert array.sharding == wanted[path].sharding
        np.testing.assert_array_equal(array, whole[path])
    kernel = params["decoder/layers/block/gate/kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}


def test_a_full_folder_is_not_overwritten(released, ours, tmp_path):
    with pytest.raises(UserError, match="holds checkpoints already"):
        engine.to_jax(released, ours)
    with pytest.raises(UserError, match="exists and is not empty"):
        engine.to_hf(ours, released)


@pytest.mark.parametrize(("family", "to"), [("internlm2", "jax"), ("phi3", "hf")], indirect=["family"])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(family, released, ours, tmp_path, to):
    source, target = (released, tmp_path / "new") if to == "jax" else (ours, tmp_path / "new")
    slow = (
        "import time; from pathlib import Path; from convert import engine\n"
        f"engine.to_{to}(Path({str(source)!r}), Path({str(target)!r}), None,"
        " lambda done, total: (print('.', flush=True), time.sleep(0.05)))"
    )
    program = Program(slow)
    program.wait_for(40)
    program.send_signal(signal.SIGKILL)
    assert program.wait()[0] == -signal.SIGKILL
    if to == "jax":
        assert not checkpoint.steps_in(target / "checkpoints")
        engine.to_jax(source, target)
        assert len(list((target / "checkpoints").iterdir())) == 1
    else:
        assert not target.exists()
        engine.to_hf(source, target)
        same_tensors(tensors_of(released), tensors_of(target))
    assert not list(tmp_path.glob("new.tmp-*"))


def test_a_full_disk_is_told_before_anything_is_written(released, ours, tmp_path, monkeypatch):

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot write .*new: No space left on device"):
        engine.to_hf(ours, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"released", "ours"}


@pytest.mark.parametrize(("family", "to"), [("internlm2", "jax"), ("phi3", "hf")], indirect=["family"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_conversion_that_is_stopped_leaves_nothing(family, released, ours, tmp_path, to, sent):
    before = {path.name for path in tmp_path.iterdir()}
    source = released if to == "jax" else ours
    slow = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "import tqdm; tqdm.tqdm.update = lambda bar, done: (print('.', flush=True), time.sleep(0.05))\n"
    )
    flags = [f"--to={to}", f"--src={source}", f"--dst={tmp_path / 'new' / 'deep'}"]
    program = Program(slow + programs.launch("convert"), *flags)
    program.wait_for(20)
    program.send_signal(sent)
    status, _, err = program.wait(timeout=60)
    said, expected = ("interrupted", 130) if sent == signal.SIGINT else ("terminated", 143)
    assert status == expected and err.rstrip().endswith(f"error: {said}"), err
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("family", ["phi3"], indirect=True)
def test_an_import_that_is_stopped_at_its_end_leaves_nothing(released, tmp_path):
    late = (
        "import os, signal, time; from trol_jax import manifest; write = manifest.write\n"
        "def slow(*args, **options):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.5); write(*args, **options)\n"
        f"manifest.write = slow\n{programs.launch('convert')}"
    )
    status, _, err = Program(late, "--to=jax", f"--src={released}", f"--dst={tmp_path / 'new'}").wait()
    assert status == 143 and err.rstrip().endswith("error: terminated"), err
    assert not (tmp_path / "new").exists()


def test_two_exports_into_one_folder(released, ours, tmp_path):
    with files.new_folder(tmp_path / "back") as first:
        (first / "file").write_text("of the first")
        with pytest.raises(UserError, match=r"another process writes to .*back; let it end"):
            engine.to_hf(ours, tmp_path / "back")
    assert (tmp_path / "back" / "file").read_text() == "of the first"


def test_where_an_export_may_go(released, ours, tmp_path):
    for inside in ("checkpoints/0/hf", "checkpoints/7"):
        with pytest.raises(UserError, match="is inside the checkpoints"):
            engine.to_hf(ours, ours / inside)
        with pytest.raises(UserError, match="is inside the checkpoints"):
            engine.to_jax(released, ours / inside)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        engine.to_jax(released, tmp_path / "loop")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    engine.to_hf(ours, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    same_tensors(tensors_of(released), tensors_of(tmp_path / "disk"))


@pytest.mark.parametrize("name", ["output.weight", "model.layers.1.attention.wqkv.ffn.weight"])
@pytest.mark.parametrize("family", ["internlm2"], indirect=True)
def test_numbers_beyond_a_dtype_are_not_made_infinite(released, tmp_path, name):
    rewrite(released, lambda tensors: tensors.update({name: tensors[name] * np.float32(1e9)}))
    with pytest.raises(
        UserError, match=r"numbers of float32 in .* are beyond the range of float16; choose another --dtype"
    ):
        engine.to_jax(released, tmp_path / "half", np.dtype(np.float16))
    engine.to_jax(released, tmp_path / "ours")
    with pytest.raises(UserError, match=f"numbers of float32 in {name} are beyond the range of float16"):
        engine.to_hf(tmp_path / "ours", tmp_path / "back", np.dtype(np.float16))
    assert not (tmp_path / "half").exists() and not (tmp_path / "back").exists()


def test_a_gate_beyond_a_dtype_is_not_made_infinite(ours, tmp_path):
    step_dir = ours / "checkpoints" / "0"
    state = checkpoint.restore_params(step_dir, nn.unbox(abstract_params(TroL(saved.read(step_dir).model))))
    state["decoder"]["gate_bias"] = jnp.full_like(state["decoder"]["gate_bias"], 1e6)
    with checkpoint.Checkpoints(tmp_path / "large" / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": state}, data_state=None, config=None, files=saved.read(step_dir).files())
    with pytest.raises(UserError, match="beyond the range of float16"):
        engine.to_hf(tmp_path / "large", tmp_path / "back", np.dtype(np.float16))


def test_a_tokeniser_of_other_weights_is_told(released, tmp_path, caplog):
    engine.to_jax(released, tmp_path / "ours")  # golden weights and tokenisers do not belong together
    assert "tokeniser and weights do not belong together" in caplog.text


def test_a_file_beside_the_weights_may_not_be_a_link_out_of_the_folder(released, tmp_path):
    (tmp_path / "secret").write_text("of someone else")
    (released / "special_tokens_map.json").unlink(missing_ok=True)
    (released / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"special_tokens_map.json is a link out of its folder: refused"):
        engine.to_jax(released, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# ---------------------------------------------------------------------- the program
def convert(*flags):
    return Program(programs.launch("convert"), *flags).wait()


def test_the_program_converts_and_prints_its_plan(tmp_path):
    source = golden.ROOT / "phi3"
    status, out, err = convert("--to=jax", f"--src={source}", "--dry_run")
    count = len(tensors_of(source))
    assert status == 0 and len(out.splitlines()) == count + 1, err
    assert f"{count} tensors, " in out and "nothing was written" in out
    line = "language_model.model.layers.2.mlp.gate_up_proj.weight -> decoder/layers/block/gate/kernel[2], "
    assert "2.bias -> decoder/gate_bias  " in out  # one for all layers
    assert line + "decoder/layers/block/up/kernel[2]  float32[144, 32]  18,432 bytes  split in two, transpose" in out
    status, out, err = programs.fresh(
        "-m", "launch.convert", "--to=jax", f"--src={source}", f"--dst={tmp_path / 'ours'}"
    )
    assert status == 0 and "100%" in err and "has no tokeniser" in err
    status, out, err = convert("--to=hf", f"--src={tmp_path / 'ours'}", f"--dst={tmp_path / 'hf'}")
    assert status == 0, err
    same_tensors(tensors_of(source), tensors_of(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--src=/nowhere"], "--to is missing"),
        (["--src=/nowhere", "--to=jax"], "--dst is missing"),
        (["--src=/nowhere", "--to=jax", "--dst=x"], "/nowhere is not a folder"),
        (["--src=/nowhere", "--to=hf", "--dst=x"], "no checkpoint at /nowhere"),
    ],
)
def test_the_program_names_what_is_wrong(flags, message):
    status, _, err = convert(*flags)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and message in lines[0], err


def test_the_program_checks_and_fails_where_something_differs(tmp_path):
    recorded = golden.outputs("internlm2")
    some = {name: array for name, array in recorded.items() if name in ("images_uint8", "pixel_values")}
    source = f"--src={golden.ROOT / 'internlm2'}"
    features = recorded["vision_features"]
    np.savez(tmp_path / "good.npz", **some, vision_features=features)
    np.savez(tmp_path / "bad.npz", **some, vision_features=features * 1.001)
    assert all(row.passed for row in check.check(golden.ROOT / "internlm2", tmp_path / "good.npz"))
    status, out, _ = convert(source, f"--check={tmp_path / 'bad.npz'}")
    assert status == 1 and "DIFFERS: vision_features" in out and "1 of 2 arrays agree" in out
    (tmp_path / "torn.npz").write_bytes(b"PK")
    assert convert(source, f"--check={tmp_path / 'torn.npz'}")[0] == 2


def damaged(folder):
    """Recordings that NumPy fails to read, each in a way of its own."""
    np.savez_compressed(folder / "bytes.npz", a=np.arange(10000))
    content = bytearray((folder / "bytes.npz").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"x" * 40
    (folder / "bytes.npz").write_bytes(content)
    header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"
    for name, member in (
        ("large", header.ljust(127) + b"\n"),
        ("header", b"\x93NUMPY\x01\x00\x76\x00{'de("),
        ("text", b"hi"),
    ):
        with zipfile.ZipFile(folder / f"{name}.npz", "w") as file:
            file.writestr("a" if name == "text" else "a.npy", member)
    with open(folder / "plain.npz", "wb") as file:
        np.save(file, np.arange(3))
    return sorted(folder.glob("*.npz"))


def test_a_damaged_recording_is_one_line(tmp_path):
    recordings = damaged(tmp_path)
    assert len(recordings) == 5
    for path in recordings:
        with pytest.raises(UserError, match=f"{path.name} is not a readable .npz"):
            check.check(golden.ROOT / "phi3", path)


def test_a_recording_of_several_prompts_at_once_is_refused(tmp_path):
    recorded = golden.outputs("phi3")
    name = next(name for name in sorted(recorded) if name.endswith(".beams1.prompt"))
    tokens = name.replace(".prompt", ".tokens")
    np.savez(tmp_path / "two.npz", **{each: np.repeat(recorded[each], 2, axis=0) for each in (name, tokens)})
    with pytest.raises(UserError, match="has several prompts; record each under a name of its own"):
        check.check(golden.ROOT / "phi3", tmp_path / "two.npz")
