"""config.json of the released folders <-> `ModelConfig`.

Every field is either read, or must have the value that the model is built for, or is known to be without effect.
Anything else is an error that names it: a field nobody looked at is how conversions go wrong silently.
"""

import dataclasses
import json
from collections.abc import Mapping

from trol_jax.errors import UserError
from trol_jax.models import variants
from trol_jax.models.variants import ModelConfig
from trol_jax.ops.rotary import DynamicNTK, Su

# Fields of every configuration that transformers writes, none of which changes what the model computes.
WITHOUT_EFFECT = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "add_cross_attention",
    "architectures", "attention_dropout", "attn_implementation", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "drop_path_rate", "dropout", "dtype", "early_stopping", "embd_pdrop",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_factor", "initializer_range", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_channels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "projection_dim", "pruned_heads", "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "template",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache", "use_flash_attn",
))  # fmt: skip

SIZES = {
    "hidden_size": "width", "intermediate_size": "hidden", "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
}  # fmt: skip
LLM = SIZES | {"num_key_value_heads": "kv_heads", "vocab_size": "vocab", "rms_norm_eps": "eps"}
VISION = SIZES | {"image_size": "image_size", "patch_size": "patch_size", "layer_norm_eps": "eps"}
PASSES = "num_passes"  # over a prompt; the original always takes two
PIXELS = {"image_mean": "mean", "image_std": "std"}

# Fields with the only values that the model is built for.
FIXED_INTERNLM2 = {"bias": (False,), "hidden_act": ("silu",), "tie_word_embeddings": (False,)}
FIXED_PHI3 = {"hidden_act": ("silu",), "tie_word_embeddings": (False,), "attention_bias": (False,)}
FIXED_CLIP = {"hidden_act": ("quick_gelu",)}
FIXED_INTERN_VIT = {
    "hidden_act": ("gelu",), "qkv_bias": (True,), "qk_normalization": (False,), "norm_type": ("layer_norm",),
}  # fmt: skip
FIXED_TOP = {
    "select_layer": (-1,), "ps_version": ("v2",), "min_dynamic_patch": (1,), "dynamic_image_size": (True,),
    "use_thumbnail": (True,), "use_backbone_lora": (0,), "use_llm_lora": (0,), "pad2square": (False,),
    "tie_word_embeddings": (False, True),  # of the outer model, which has no head
}  # fmt: skip


def _usable(value) -> bool:
    """Numbers are more than zero and of a size that can be meant; so are those of lists."""
    if isinstance(value, list | tuple):
        return all(isinstance(each, int | float) and not isinstance(each, bool) and _usable(each) for each in value)
    return not isinstance(value, int | float) or 0 < value < 1e9


class _Fields:
    """One level of a config.json. What was not taken at the end is unknown."""

    def __init__(self, raw: Mapping, place: str):
        if not isinstance(raw, Mapping):
            raise UserError(f"{place} is {raw!r}, must be a JSON object")
        self.raw, self.place, self.taken, self.problems = raw, place, set(), []

    def take(self, name: str, default=None, kind: type | tuple = object, zero: bool = False):
        self.taken.add(name)
        value = self.raw.get(name, default)
        if value is None:
            self.problems.append(f"{self.place}.{name} is missing")
        elif not isinstance(value, kind) or isinstance(value, bool) or not (_usable(value) or (zero and value == 0)):
            self.problems.append(f"{self.place}.{name} is {value!r}")
        else:
            return value

    def take_all(self, names: Mapping[str, str], base) -> dict:
        kinds = {"eps": (int, float)}
        return {ours: self.take(n, getattr(base, ours), kinds.get(ours, int)) for n, ours in names.items()}

    def check(self, fixed: Mapping[str, tuple]) -> None:
        for name, accepted in fixed.items():
            self.taken.add(name)
            if name in self.raw and self.raw[name] not in accepted:
                self.problems.append(f"{self.place}.{name} is {self.raw[name]!r}, only {accepted[0]!r} is supported")

    def inner(self, name: str) -> "_Fields":
        self.taken.add(name)
        return _Fields(self.raw[name] if self.raw.get(name) is not None else {}, f"{self.place}.{name}")

    def finish(self) -> list[str]:
        unknown = sorted(set(self.raw) - self.taken - WITHOUT_EFFECT)
        return self.problems + [f"{self.place}.{name} is not known (it is {self.raw[name]!r})" for name in unknown]


def read(raw: Mapping, family: str, place: str) -> ModelConfig:
    """The sizes that a config.json describes; what it leaves out is as in the released model of the family.

    UserError with every problem at once.
    """
    base = variants.VARIANTS["trol_1_8b" if family == "internlm2" else "trol_3_8b"]
    config, levels = (_read_internlm2 if family == "internlm2" else _read_phi3)(_Fields(raw, place), base)
    config = dataclasses.replace(config, passes=levels[0].take(PASSES, 2, int) or 0)
    problems = [problem for level in levels for problem in level.finish()] or _impossible(config, place)
    if problems:
        unknown = any("is not known" in problem for problem in problems)
        known = f"; known to be without effect: {', '.join(sorted(WITHOUT_EFFECT))}" if unknown else ""
        raise UserError(f"{'; '.join(problems)}{known}")
    name = next((v.name for v in variants.VARIANTS.values() if _sizes(v) == _sizes(config)), "custom")
    return dataclasses.replace(config, name=name)


def _impossible(config: ModelConfig, place: str) -> list[str]:
    """What no model can be built of, each field being in order by itself."""
    d, v, rope = config.decoder, config.vision, config.decoder.rope
    rows = d.vocab + d.extra_rows
    wrong = {
        f"hidden_size {d.width} is not a multiple of num_attention_heads {d.heads}": d.width % d.heads,
        f"num_attention_heads {d.heads} is not a multiple of num_key_value_heads {d.kv_heads}": d.heads % d.kv_heads,
        f"vision hidden_size {v.width} is not a multiple of num_attention_heads {v.heads}": v.width % v.heads,
        f"image size {v.image_size} is not a multiple of patch_size {v.patch_size}": v.image_size % v.patch_size,
        f"image_token_index {config.image_token} has no row in an embedding of {rows}": config.image_token >= rows,
        f"plora.dropout {d.lora_dropout} is not less than 1": d.lora_dropout >= 1,
        "a model has at most 1,000 layers": max(d.layers, v.layers) > 1000,
        "images need a mean and a deviation of three numbers each": (len(v.mean), len(v.std)) != (3, 3),
    }
    if isinstance(rope, Su) and not d.width % d.heads:
        half = d.head_dim // 2
        lengths = (len(rope.short), len(rope.long))
        wrong[f"short_factor and long_factor have {lengths} numbers, need {half}"] = lengths != (half, half)
        wrong["original_max_position_embeddings must be at least 2"] = rope.original_max_positions < 2
        side = v.image_size // v.patch_size
        wrong["downsample_ratio must be 0.5, and the patches an even square"] = config.shuffle != 2 or side % 2
    return [f"{place}: {text}" for text, holds in wrong.items() if holds]


def _sizes(config: ModelConfig) -> ModelConfig:
    """What has to be equal for a model to go by the name of a variant."""
    rope = DynamicNTK(0.0, 0.0, 0)
    decoder = dataclasses.replace(config.decoder, rope=rope, lora_dropout=0.0, vocab=0)
    return dataclasses.replace(config, name="", shared_gate=True, passes=2, max_tiles=1, image_token=0, decoder=decoder)


def _read_internlm2(top: _Fields, base: ModelConfig):
    scaling, lora, vision = top.inner("rope_scaling"), top.inner("plora"), top.inner("vision_config")
    scaling.check({"type": ("dynamic",)})
    top.check(FIXED_INTERNLM2)
    vision.check(FIXED_CLIP)
    rank = lora.take("rank", base.decoder.lora_rank, int)
    lora.check({"alpha": (rank,)})
    dropout = lora.take("dropout", base.decoder.lora_dropout, (int, float), zero=True)
    number = (int, float)
    sizes = top.take_all(LLM, base.decoder)
    rope = DynamicNTK(
        float(top.take("rope_theta", base.decoder.rope.theta, number) or 0),
        float(scaling.take("factor", 1.0, number) or 0),
        top.take("max_position_embeddings", base.decoder.rope.max_positions, int),
    )
    seen = vision.take_all(VISION, base.vision)
    seen |= _pixels(vision, base.vision)
    if "img_size" in top.raw:
        seen["image_size"] = top.take("img_size", kind=int)
    token = top.take("image_token_index", sizes["vocab"], int, zero=True)
    decoder = dataclasses.replace(base.decoder, **sizes, rope=rope, lora_rank=rank, lora_dropout=dropout)
    config = dataclasses.replace(
        base, decoder=decoder, vision=dataclasses.replace(base.vision, **seen), image_token=token
    )
    return config, (top, scaling, lora, vision)


def _read_phi3(top: _Fields, base: ModelConfig):
    llm, vision = top.inner("llm_config"), top.inner("vision_config")
    scaling = llm.inner("rope_scaling")
    for level, fixed in ((top, FIXED_TOP), (llm, FIXED_PHI3), (vision, FIXED_INTERN_VIT)):
        level.check(fixed)
    scaling.check({"type": ("su",)})
    number, rope = (int, float), base.decoder.rope
    sizes, seen = llm.take_all(LLM, base.decoder), vision.take_all(VISION, base.vision)
    seen |= _pixels(vision, base.vision)
    seen["image_size"] = top.take("force_image_size", seen["image_size"], int)
    positions = llm.take("max_position_embeddings", rope.max_positions, int)
    window = llm.raw.get("sliding_window")  # one that no text outgrows is none
    wide = isinstance(window, int) and window >= (positions or 0)
    llm.check({"sliding_window": (None, window) if wide else (None,)})
    lists = {name: tuple(map(float, scaling.take(name, getattr(rope, short), list | tuple) or ()))
             for name, short in (("short_factor", "short"), ("long_factor", "long"))}  # fmt: skip
    rope = Su(
        float(llm.take("rope_theta", rope.theta, number) or 0),
        lists["short_factor"],
        lists["long_factor"],
        positions,
        llm.take("original_max_position_embeddings", rope.original_max_positions, int),
    )
    ratio = top.take("downsample_ratio", 1 / base.shuffle, number) or 1
    config = dataclasses.replace(
        base,
        decoder=dataclasses.replace(base.decoder, **sizes, rope=rope),
        vision=dataclasses.replace(base.vision, **seen),
        shuffle=round(1 / ratio),
        max_tiles=top.take("max_dynamic_patch", base.max_tiles, int),
        image_token=top.take("image_token_index", base.image_token, int, zero=True),
    )
    return config, (top, llm, vision, scaling)


def _pixels(level: _Fields, base) -> dict:
    """Mean and deviation of the pictures, which released files leave out."""
    return {ours: tuple(level.take(name, getattr(base, ours), list | tuple) or ()) for name, ours in PIXELS.items()}


def with_passes(content: bytes, passes: int) -> bytes:
    """The config.json with a field of our own, which `read` knows."""
    return (json.dumps(json.loads(content) | {PASSES: passes}, indent=2) + "\n").encode()


def write(config: ModelConfig) -> bytes:
    """A config.json of the model, for weights that did not come with one. `read` gives the same sizes back."""
    text = _write_internlm2(config) if config.family == "internlm2" else _write_phi3(config)
    return (json.dumps(text, indent=2) + "\n").encode()


def _named(sizes, names: Mapping[str, str]) -> dict:
    return {name: getattr(sizes, ours) for name, ours in names.items()}


def _write_internlm2(config: ModelConfig) -> dict:
    rope, rank = config.decoder.rope, config.decoder.lora_rank
    return {
        "model_type": "internlm", **_named(config.decoder, LLM), "bias": False, "hidden_act": "silu",
        "tie_word_embeddings": False, "rope_theta": rope.theta,
        "rope_scaling": {"type": "dynamic", "factor": rope.factor}, "max_position_embeddings": rope.max_positions,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "img_size": config.vision.image_size,
        "image_token_index": config.image_token,
        "plora": {"rank": rank, "alpha": rank, "dropout": config.decoder.lora_dropout},
        "vision_config": {**_named(config.vision, VISION | PIXELS), "hidden_act": "quick_gelu"},
    }  # fmt: skip


def _write_phi3(config: ModelConfig) -> dict:
    rope = config.decoder.rope
    return {
        "model_type": "trol", "image_token_index": config.image_token, "select_layer": -1, "ps_version": "v2",
        "downsample_ratio": 1 / config.shuffle, "min_dynamic_patch": 1, "max_dynamic_patch": config.max_tiles,
        "dynamic_image_size": True, "use_thumbnail": True, "force_image_size": config.vision.image_size,
        "template": "phi3-chat",
        "llm_config": {
            "model_type": "phi3", **_named(config.decoder, LLM), "hidden_act": "silu", "tie_word_embeddings": False,
            "rope_theta": rope.theta, "max_position_embeddings": rope.max_positions,
            "original_max_position_embeddings": rope.original_max_positions, "sliding_window": None,
            "rope_scaling": {"type": "su", "short_factor": list(rope.short), "long_factor": list(rope.long)},
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        },
        "vision_config": {
            "model_type": "intern_vit_6b", **_named(config.vision, VISION | PIXELS), "hidden_act": "gelu",
            "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
        },
    }  # fmt: skip
