"""Settings: declared once, typed, and never silently unread."""

import importlib
import json
import pathlib
import runpy

import flax.linen as nn
import pytest
from flax.traverse_util import flatten_dict

import programs
from programs import Program
from test_train import error_line
from trol_jax import typed
from trol_jax.data.sources import SOURCES
from trol_jax.errors import UserError
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import ModelConfig, get_variant
from trol_jax.ops.traversal import MIXES
from trol_jax.sharding import rules
from trol_jax.train import config as config_lib
from trol_jax.train import parameters

RECIPES = [
    (f"trol_{size}", step) for size in ("1_8b", "3_8b", "7b") for step in ("step1", "step2", "step2,lora", "step2,full")
]
CONFIGS = [("quickstart", ""), *(("tiny_recipe", stage) for stage in ("base", "step1", "step2")), *RECIPES]


def values(name="quickstart", argument=""):
    return importlib.import_module(f"configs.{name}").get_config(argument).to_dict()


def test_every_config_file_is_tested():
    parts = {"__init__", "recipe", "evaluation", "traversal"}
    assert {path.stem for path in pathlib.Path("configs").glob("*.py")} - parts == {name for name, _ in CONFIGS}


@pytest.mark.parametrize(("name", "step"), RECIPES)
def test_each_step_of_the_recipe_trains_what_the_paper_says(name, step):
    config = config_lib.from_dict(values(name, step))
    shapes = flatten_dict(nn.unbox(abstract_params(TroL(get_variant(name)))), sep="/")
    found = parameters.treatments(config.parameters, list(shapes))
    for parameter, treatment in found.items():
        kernel = parameter.startswith("decoder/layers/block/") and parameter.endswith("/kernel")
        always = parameter.startswith(("projector/", "decoder/gate_"))
        full = (
            step == "step2,full" and parameter.startswith("decoder/") and not parameter.endswith(("lora_a", "lora_b"))
        )
        assert treatment.trained == (always or full), parameter
        assert treatment.lora == (kernel and step in ("step2", "step2,lora")), parameter
        kind = "int8" if name == "trol_3_8b" else "nf4"
        assert treatment.quantized == (kind if kernel and step in ("step1", "step2") else ""), parameter
    assert config.steps * 768 >= sum(spec.count for spec in SOURCES.values()) > (config.steps - 1) * 768
    with pytest.raises(ValueError, match=f"configs/{name}.py takes :step1, :step2"):
        values(name, "step1,lora")


@pytest.mark.parametrize("name", ["trol_1_8b", "trol_3_8b", "trol_7b"])
def test_the_commands_on_top_of_the_recipe_run_on_what_they_are_for(name):
    module = importlib.import_module(f"configs.{name}")
    text = module.__doc__.replace("\\\n", "")
    commands = [line.split() for line in text.splitlines() if "-m launch.train " in line]
    assert len(commands) == 4
    for command in commands:
        flags = dict(each.partition("=")[::2] for each in command if each.startswith("--"))
        config = module.get_config(flags["--config"].partition(":")[2])
        accumulation = int(flags.get("--config.accumulation", config.accumulation))
        assert config.batch_size / accumulation % (64 if "--distributed" in flags else 8) == 0, command
        others = flags.keys() - {"--config", "--workdir", "--config.accumulation", "--distributed"}
        assert not others and flags["--workdir"] == f"runs/{name}_{flags['--config'].partition(':')[2]}"


@pytest.mark.parametrize(("name", "argument"), CONFIGS)
def test_every_config_file_gives_every_setting_and_no_other(name, argument):
    config = config_lib.from_dict(values(name, argument))
    assert config_lib.from_dict(json.loads(json.dumps(typed.to_dict(config)))) == config


STUDIES = sorted(path.stem for path in pathlib.Path("configs/studies").glob("[!_]*.py"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_is_a_run(name):
    module = importlib.import_module(f"configs.studies.{name}")
    towers = {}
    for row in module.ROWS:
        config, tower, shapes = (
            config_lib.from_dict(module.get_config(f"{row}{words}").to_dict()) for words in ("", ",tower", ",shapes")
        )
        assert tower.model == shapes.model == config.model and not tower.start_from
        assert (shapes.data.root, shapes.start_from) == ("data/shapes", f"{config.start_from}_shapes")
        # Rows that start from the same run have parameters of the same shapes.
        gates = config.model.shared_gate, config.model.traversal.gate, config.model.traversal.gates
        assert towers.setdefault(config.start_from, (config.model.variant, gates)) == (config.model.variant, gates)
    first = next(iter(module.ROWS))
    assert {pair for pairs in getattr(module, "AGAINST", {}).items() for pair in pairs} <= module.ROWS.keys()
    assert module.get_config() == module.get_config(first)
    with pytest.raises(ValueError, match=f"choose one of {first}, "):
        module.get_config(f"{first},tiny")


def test_the_studies_of_the_paper_have_their_files():
    tables = {f"table{number}" for number in range(5, 11)}
    assert set(STUDIES) == tables | {"mixing", "gates", "tokens", "layers", "passes", "depth"}
    mixes = {importlib.import_module("configs.studies.mixing").get_config(row).model.traversal.mix for row in MIXES}
    assert mixes == set(MIXES)


@pytest.mark.parametrize(("argument", "smoke"), [("", "smoke"), ("tower", "tower,smoke")])
def test_smoke_is_the_quickstart_with_fewer_steps(argument, smoke):
    whole, smoke = values(argument=argument), values(argument=smoke)
    assert smoke["steps"] < 20 < whole["steps"]
    for key in ("objective", "start_from", "data", "model", "batch_size"):
        assert smoke[key] == whole[key]


def test_the_quickstart_starts_from_its_tower():
    tower, whole = values(argument="tower"), values()
    assert whole["start_from"] and not tower["start_from"] and tower["model"] == whole["model"]
    with pytest.raises(ValueError, match="takes :tower, :smoke or :tower,smoke, not 'smok'"):
        values(argument="tower,smok")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.lrr", 1.0, r"config\.optimizer\.lrr is not a setting; did you mean config\.optimizer\.lr\?"),
        ("zzz", 1, r"config\.zzz is not a setting; known keys: model, data"),
        ("steps", 1.5, r"config\.steps is 1\.5, must be of type int"),
        ("seed", True, r"config\.seed is True, must be of type int"),
        ("steps", 0, r"config\.steps is 0, must be at least 1"),
        ("objective", "word", r"config\.objective is 'word', must be one of answers, text, words"),
        ("dtype", "float16", r"config\.dtype is 'float16', must be one of float32, bfloat16"),
        ("remat", "all", r"config\.remat is 'all', must be one of none, layer, dots"),
        ("model.traversal.mix", "sum", r"config\.model\.traversal\.mix is 'sum', must be one of gate, first"),
        ("model.traversal.layers", "first 4", r"config\.model\.traversal\.layers is 'first 4', must be all, 'first 2'"),
        ("model.traversal.decode", "no", r"config\.model\.traversal\.decode is 'no', must be of type bool"),
        ("model.passes", 0, r"config\.model\.passes is 0"),
        ("seed", -1, r"config\.seed is -1, must be at least 0"),
        ("seed", 2**32, r"config\.seed is 4294967296, must be at least 0 and less than 2\*\*32"),
        (
            "optimizer",
            values()["optimizer"] | {"lr": float("nan")},
            r"config\.optimizer\.lr is nan, must be more than 0",
        ),
        ("optimizer", values()["optimizer"] | {"clip": 0.0}, r"config\.optimizer\.clip is 0\.0, must be more than 0"),
        ("optimizer", values()["optimizer"] | {"warmup": -3}, r"config\.optimizer\.warmup is -3, must be at least 0"),
        (
            "optimizer",
            values()["optimizer"] | {"b2": 1.0},
            r"config\.optimizer\.b2 is 1\.0, must be at least 0 and less",
        ),
        ("accumulation", 3, r"config\.batch_size 16 is not divisible by config\.accumulation 3"),
    ],
)
def test_bad_values_are_named(path, value, message):
    raw = values()
    *parents, key = path.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    node[key] = value
    with pytest.raises(UserError, match=message):
        config_lib.from_dict(raw)


OWN_RULES = """
from configs import quickstart
from trol_jax.sharding.rules import AXES

def get_config(how):
    config = quickstart.get_config("smoke")
    table = dict.fromkeys(AXES) | {"embed": "fsdp", "batch": ["data", "fsdp"]}
    if how == "plain":
        config.rules = table
    else:
        with config.ignore_type():
            config.rules = table
    return config
"""


def test_a_config_may_have_a_table_of_rules(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN_RULES)
    table = config_lib.from_dict(runpy.run_path(str(file))["get_config"]("").to_dict()).rules
    assert rules.table(table)["embed"] == ("fsdp",) and rules.table(table)["batch"] == ("data", "fsdp")
    flags = f"--config={file}:plain", f"--workdir={tmp_path / 'run'}"
    line = error_line(Program(programs.launch("train"), *flags).wait())
    assert "as a table of rules, `with config.ignore_type():`" in line


def test_missing_settings_are_named():
    raw = values()
    del raw["seed"], raw["keep"]
    with pytest.raises(UserError, match="config lacks the settings seed, keep"):
        config_lib.from_dict(raw)


def test_settings_from_before_a_setting_was_there_are_read():
    raw = values()
    del raw["z_loss"], raw["evaluation"]["best"], raw["optimizer"]["rates"]
    del raw["model"]["traversal"]
    config = config_lib.from_dict(raw, old=True)
    assert config.model == config_lib.from_dict(values()).model and (
        config.z_loss,
        config.evaluation.best,
        config.optimizer.rates,
    ) == (0.0, "", ())
    with pytest.raises(UserError, match="config lacks the settings z_loss"):
        config_lib.from_dict(raw)
    del raw["seed"]
    with pytest.raises(UserError, match="config lacks the settings seed"):
        config_lib.from_dict(raw, old=True)
    model = typed.to_dict(get_variant("trol_7b"))
    del model["traversal"]
    assert typed.from_dict(model, ModelConfig, "model", old=True) == get_variant("trol_7b")


def test_differences_leave_out_how_a_run_is_watched():
    old, new = values(), values()
    new["optimizer"]["lr"], new["keep"], new["data"]["workers"] = 1.0, 9, 2
    new["data"]["augment"] = list(old["data"]["augment"])
    assert config_lib.differences(config_lib.from_dict(old), config_lib.from_dict(new)) == [
        "config.optimizer.lr: 0.001 there, 1.0 here"
    ]
