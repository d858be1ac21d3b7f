"""Settings: declared once, typed, and never silently unread."""

import importlib
import json
import pathlib

import pytest

from trol_jax import typed
from trol_jax.errors import UserError
from trol_jax.train import config as config_lib

CONFIGS = [path.stem for path in pathlib.Path("configs").glob("*.py") if path.stem != "__init__"]


def values(name="quickstart", argument=""):
    return importlib.import_module(f"configs.{name}").get_config(argument).to_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_gives_every_setting_and_no_other(name):
    config = config_lib.from_dict(values(name))
    assert config_lib.from_dict(json.loads(json.dumps(typed.to_dict(config)))) == config


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
        ("objective", "word", r"config\.objective is 'word', must be one of answers, words"),
        ("dtype", "float16", r"config\.dtype is 'float16', must be one of float32, bfloat16"),
        ("remat", "all", r"config\.remat is 'all', must be one of none, layer, dots"),
        ("model.passes", 0, r"config\.model\.passes is 0"),
        ("seed", -1, r"config\.seed is -1, must be at least 0"),
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


def test_missing_settings_are_named():
    raw = values()
    del raw["seed"], raw["keep"]
    with pytest.raises(UserError, match="config lacks the settings seed, keep"):
        config_lib.from_dict(raw)


def test_differences_leave_out_how_a_run_is_watched():
    old, new = values(), values()
    new["optimizer"]["lr"], new["keep"], new["data"]["workers"] = 1.0, 9, 2
    new["data"]["augment"] = list(old["data"]["augment"])
    assert config_lib.differences(config_lib.from_dict(old), config_lib.from_dict(new)) == [
        "config.optimizer.lr: 0.001 there, 1.0 here"
    ]
