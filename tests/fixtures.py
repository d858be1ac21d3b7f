"""A run on disk small enough to load and answer in seconds, and a data folder for it."""

import contextlib
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image, ImageDraw

import tiny
from trol_jax import checkpoint, saved, typed
from trol_jax.checkpoint import CHECKPOINTS, Checkpoints
from trol_jax.data import easy_vqa
from trol_jax.data.pipeline import DataOptions
from trol_jax.data.prompts import FORMATS
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import VARIANTS
from trol_jax.saved import Saved
from trol_jax.train import config as config_lib
from trol_jax.train import parameters
from trol_jax.train.optimizer import OptimizerOptions
from trol_jax.train.parameters import LoraOptions

QUESTIONS = [
    ("is there a red shape in the image?", "yes"),
    ("is there a blue shape in the image?", "no"),
    ("what color is the shape in the image?", "red"),
    ("what shape is in the image?", "circle"),
]


@contextlib.contextmanager
def nano_variants():
    """Makes the sizes of `tiny.config` known by name, as nano_phi3 and nano_internlm2."""
    nano = {f"nano_{family}": tiny.config(family, name=f"nano_{family}") for family in tiny.FAMILIES}
    VARIANTS.update(nano)
    try:
        yield
    finally:
        for name in nano:
            del VARIANTS[name]


def run_config(family: str = "phi3", **changes) -> config_lib.RunConfig:
    data = DataOptions(root="", turns=2, isolate_turns=True, max_length=64, augment=(), system="", workers=0)
    config = config_lib.RunConfig(
        model=config_lib.ModelOptions(variant=f"nano_{family}", shared_gate=True, passes=2),
        data=data,
        optimizer=OptimizerOptions(lr=1e-3, lr_end=1e-5, warmup=1, weight_decay=0.0, clip=1.0, b1=0.9, b2=0.98),
        objective="answers", start_from="", seed=0, steps=1, batch_size=8, accumulation=1, dtype="float32",
        parameters=((".*", "train"),), lora=LoraOptions(0, 0.0),
        remat="none", scan=True, mesh="data=-1", rules="data", checkpoint_every=1, keep=3, log_every=1,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def save_run(directory, family: str = "phi3", step: int = 1, seed: int = 0, **changes):
    """Random parameters as a checkpoint of `directory`, which is returned. To be called within `nano_variants`."""
    passes = changes.pop("passes", 2)
    config = run_config(family, **changes)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, passes=passes))
    tokenizer = train_tokenizer([text for pair in QUESTIONS for text in pair], FORMATS[family], vocab_size=340)
    here = Saved(config_lib.model_config(config.model, tokenizer.vocab_size, tokenizer.image_id), tokenizer)
    params = tiny.draw(TroL(here.model), seed)
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        checkpoints.save(
            step,
            {"params": params},
            data_state={},
            config=typed.to_dict(config),
            files=here.files(),
        )
    return directory


def save_adapted(directory, family: str, table: parameters.Table):
    """`directory`/base, and `directory`/run from it, whose trained parameters are random; pairs of rank 2, alpha 4.

    Returns (run, parameters of its model). To be called within `nano_variants`.
    """
    base = checkpoint.resolve(save_run(directory / "base", family))
    config = run_config(family, start_from=str(base), parameters=table, lora=LoraOptions(rank=2, alpha=4.0))
    here = dataclasses.replace(saved.read(base), settings=config, base=saved.Base.of(base))
    shapes = nn.unbox(abstract_params(TroL(here.model)))
    found = parameters.treatments(table, list(flatten_dict(shapes, sep="/")))
    params = jax.tree.map(jnp.asarray, checkpoint.restore_params(base, shapes))
    trained, frozen = parameters.split(params, found, config.lora, jnp.float32, jax.random.key(0))
    rng = np.random.default_rng(0)
    trained = {name: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32) for name, leaf in trained.items()}
    with Checkpoints(directory / "run" / CHECKPOINTS) as checkpoints:
        options = dict(data_state=None, config=typed.to_dict(config), files=here.files())
        checkpoints.save(3, {"params": trained}, **options)
    return directory / "run", parameters.joiner(config.lora)(trained, frozen)


def flip_bytes(step_dir) -> None:
    """Damages the largest file of a checkpoint: its size stays, and orbax reads it without complaint."""
    path = max((each for each in step_dir.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, 97):
        data[place] ^= 4
    path.write_bytes(data)


def save_data(directory, pictures: int = 3):
    """A test split with every question of QUESTIONS about each of some pictures; returns the folder."""
    images = directory / "test" / "images"
    images.mkdir(parents=True)
    for number in range(pictures):
        picture = Image.new("RGB", (16, 16), (220, 230, 240 - 40 * number))
        ImageDraw.Draw(picture).ellipse((2, 2, 8 + number, 8 + number), fill=easy_vqa.COLORS[number])
        picture.save(images / f"{number}.png")
    rows = [[question, answer, number] for number in range(pictures) for question, answer in QUESTIONS]
    (directory / "test" / "questions.json").write_text(json.dumps(rows))
    return directory
