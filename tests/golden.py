"""Recorded outputs of the original PyTorch implementation on two tiny random checkpoints (tests/data/golden)."""

import dataclasses
import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from trol_jax.models import variants
from trol_jax.ops.rotary import DynamicNTK, Su

ROOT = pathlib.Path(__file__).parent / "data" / "golden"
FAMILIES = ("internlm2", "phi3")


@functools.cache
def outputs(family):
    return dict(np.load(ROOT / family / "golden.npz"))


@functools.cache
def load(family):
    """(ModelConfig, parameters) of the checkpoint."""
    raw = json.loads((ROOT / family / "config.json").read_text())
    tensors = load_file(ROOT / family / "model.safetensors")
    llm, vision = raw.get("llm_config", raw), raw["vision_config"]
    base = variants.VARIANTS["trol_1_8b" if family == "internlm2" else "trol_3_8b"]
    if family == "internlm2":
        rope = DynamicNTK(llm["rope_theta"], llm["rope_scaling"]["factor"], llm["max_position_embeddings"])
    else:
        scaling = llm["rope_scaling"]
        rope = Su(llm["rope_theta"], tuple(scaling["short_factor"]), tuple(scaling["long_factor"]),
                  llm["max_position_embeddings"], llm["original_max_position_embeddings"])  # fmt: skip

    def sizes(c):
        names = dict(width="hidden_size", hidden="intermediate_size", layers="num_hidden_layers")
        return {ours: c[theirs] for ours, theirs in names.items()} | {"heads": c["num_attention_heads"]}

    config = dataclasses.replace(
        base,
        name=f"golden_{family}",
        image_token=raw["image_token_index"],
        vision=dataclasses.replace(
            base.vision, **sizes(vision), patch_size=vision["patch_size"], image_size=vision["image_size"]
        ),
        decoder=dataclasses.replace(
            base.decoder, **sizes(llm), kv_heads=llm["num_key_value_heads"], vocab=llm["vocab_size"], rope=rope,
            lora_rank=raw.get("plora", {}).get("rank", 0), lora_dropout=0.0,
        ),
    )  # fmt: skip
    # The released gate is a torch file, the same values for every layer; they are stored here as plain arrays.
    return config, to_tree(family, config, tensors | dict(np.load(ROOT / family / "gate.npz")))


def to_tree(family, config, tensors):
    """Released tensors (or gradients, where some are missing) -> our tree of parameters."""
    d, v = config.decoder, config.vision
    k, g, h = d.kv_heads, d.heads // d.kv_heads, d.head_dim

    def by_layer(layers, make):
        trees = [make(i) for i in range(layers)]
        return {name: jnp.stack([tree[name] for tree in trees]) for name in trees[0]}

    def qkv_phi3(w):
        q, key, value = w[: d.width], w[d.width : d.width + k * h], w[d.width + k * h :]
        parts = [q.reshape(k, g, h, -1), key.reshape(k, 1, h, -1), value.reshape(k, 1, h, -1)]
        return np.moveaxis(np.concatenate(parts, 1), -1, 0)

    def decoder_layer(i):
        if family == "phi3":
            p = f"language_model.model.layers.{i}."
            gate_up = tensors[p + "mlp.gate_up_proj.weight"]
            return {
                "attention_norm/scale": tensors[p + "input_layernorm.weight"],
                "mlp_norm/scale": tensors[p + "post_attention_layernorm.weight"],
                "qkv/kernel": qkv_phi3(tensors[p + "self_attn.qkv_proj.weight"]),
                "out/kernel": tensors[p + "self_attn.o_proj.weight"].T.reshape(d.heads, h, -1),
                "gate/kernel": gate_up[: d.hidden].T,
                "up/kernel": gate_up[d.hidden :].T,
                "down/kernel": tensors[p + "mlp.down_proj.weight"].T,
            }
        p = f"model.layers.{i}."
        names = {"qkv": "attention.wqkv", "out": "attention.wo", "gate": "feed_forward.w1", "up": "feed_forward.w3",
                 "down": "feed_forward.w2"}  # fmt: skip
        outs, ins = {"qkv": (k, g + 2, h)}, {"out": (d.heads, h)}
        tree = {
            "attention_norm/scale": tensors[p + "attention_norm.weight"],
            "mlp_norm/scale": tensors[p + "ffn_norm.weight"],
        }
        for ours, theirs in names.items():
            w, a, b = (tensors[f"{p}{theirs}.{part}.weight"].T for part in ("ffn", "lora_A", "lora_B"))
            n_in, n_out = ins.get(ours, w.shape[:1]), outs.get(ours, w.shape[1:])
            tree[f"{ours}/kernel"] = w.reshape(*n_in, *n_out)
            tree[f"{ours}/lora_a"], tree[f"{ours}/lora_b"] = a.reshape(*n_in, -1), b.reshape(-1, *n_out)
        return tree

    def vision_layer(i):
        tree = {}
        if family == "phi3":
            p = f"vision_model.encoder.layers.{i}."
            w, b = tensors[p + "attn.qkv.weight"], tensors[p + "attn.qkv.bias"]
            names = {"out": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}
            tree |= {"scale1": tensors[p + "ls1"], "scale2": tensors[p + "ls2"]}
        else:
            p = f"vit.vision_tower.vision_model.encoder.layers.{i}."
            w, b = (
                np.concatenate([tensors[f"{p}self_attn.{x}_proj.{kind}"] for x in "qkv"]) for kind in ("weight", "bias")
            )
            names = {"out": "self_attn.out_proj", "up": "mlp.fc1", "down": "mlp.fc2", "norm1": "layer_norm1",
                     "norm2": "layer_norm2"}  # fmt: skip
        heads = (v.heads, v.width // v.heads)
        tree |= {"qkv/kernel": w.T.reshape(-1, 3, *heads), "qkv/bias": b.reshape(3, *heads)}
        for ours, theirs in names.items():
            weight = tensors[f"{p}{theirs}.weight"]
            tree[f"{ours}/{'scale' if 'norm' in ours else 'kernel'}"] = weight.T
            tree[f"{ours}/bias"] = tensors[f"{p}{theirs}.bias"]
        tree["out/kernel"] = tree["out/kernel"].reshape(*heads, -1)
        return tree

    prefix = "language_model." if family == "phi3" else ""
    tree = {f"decoder/layers/block/{n}": x for n, x in by_layer(d.layers, decoder_layer).items()}
    embedding = {"phi3": "language_model.model.embed_tokens.weight", "internlm2": "model.tok_embeddings.weight"}[family]
    if embedding in tensors:
        tree["decoder/embedding"] = tensors[embedding]
        tree |= {f"vision/layers/{n}": x for n, x in by_layer(v.layers, vision_layer).items()}
        root = "vision_model." if family == "phi3" else "vit.vision_tower.vision_model."
        tree["vision/class"] = tensors[root + "embeddings.class_embedding"].reshape(-1)
        positions = "embeddings.position_embedding" + ("" if family == "phi3" else ".weight")
        tree["vision/positions"] = tensors[root + positions].reshape(-1, v.width)
        patch = tensors[root + "embeddings.patch_embedding.weight"]
        tree["vision/patch/kernel"] = patch.transpose(2, 3, 1, 0).reshape(-1, v.width)
        if family == "phi3":
            tree["vision/patch/bias"] = tensors[root + "embeddings.patch_embedding.bias"]
        else:
            for ours, theirs in {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm"}.items():
                tree[f"vision/{ours}/scale"] = tensors[f"{root}{theirs}.weight"]
                tree[f"vision/{ours}/bias"] = tensors[f"{root}{theirs}.bias"]
    tree["decoder/norm/scale"] = tensors[prefix + "model.norm.weight"]
    tree["decoder/head/kernel"] = tensors["language_model.lm_head.weight" if family == "phi3" else "output.weight"].T
    tree["decoder/gate_kernel"], tree["decoder/gate_bias"] = tensors["weight"].reshape(-1), tensors["bias"][0]
    first, last = ("1", "3") if family == "phi3" else ("0", "2")
    if family == "phi3":
        tree |= {
            "projector/norm/scale": tensors["vision_proj.0.weight"],
            "projector/norm/bias": tensors["vision_proj.0.bias"],
        }
    for ours, index in {"up": first, "down": last}.items():
        tree[f"projector/{ours}/kernel"] = tensors[f"vision_proj.{index}.weight"].T
        tree[f"projector/{ours}/bias"] = tensors[f"vision_proj.{index}.bias"]
    nested = {}
    for path, value in tree.items():
        *parents, leaf = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(value)
    return nested
