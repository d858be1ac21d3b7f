"""InternLM2 with partial LoRA and its projector: TroL-1.8B and 7B, and the InternLM-XComposer2-VL bases."""

from convert import clip
from convert.rules import Rule, table
from convert.transforms import linear, one_more_row

_MATRICES = {  # released name -> (our path, input axes)
    "attention.wqkv": ("block/qkv", 1),
    "attention.wo": ("block/out", 2),
    "feed_forward.w1": ("block/gate", 1),
    "feed_forward.w3": ("block/up", 1),
    "feed_forward.w2": ("block/down", 1),
}
_NORMS = {"attention_norm.weight": "block/attention_norm/scale", "ffn_norm.weight": "block/mlp_norm/scale"}
_REST = {
    "model.tok_embeddings.weight": "decoder/embedding",
    "model.norm.weight": "decoder/norm/scale",
    "output.weight": ("decoder/head/kernel", linear()),
    "vision_proj.0.weight": ("projector/up/kernel", linear()),
    "vision_proj.0.bias": "projector/up/bias",
    "vision_proj.2.weight": ("projector/down/kernel", linear()),
    "vision_proj.2.bias": "projector/down/bias",
}


def _rules(kernel: str, lora_a: str, lora_b: str, **changed) -> list[Rule]:
    layer = dict(_NORMS)
    for theirs, (ours, inputs) in _MATRICES.items():
        layer[theirs + kernel] = (f"{ours}/kernel", linear(inputs))
        layer[theirs + lora_a] = (f"{ours}/lora_a", linear(inputs))
        layer[theirs + lora_b] = (f"{ours}/lora_b", linear())
    return [*table(_REST | changed), *table(layer, "model.layers.{i}.", "decoder/layers/"), *clip.RULES]


RULES = _rules(".ffn.weight", ".lora_A.weight", ".lora_B.weight")
# The bases: the partial LoRA is part of the linear map there, and no token stands for pictures.
BASE_RULES = _rules(
    ".weight",
    ".Plora_A.weight",
    ".Plora_B.weight",
    **{"model.tok_embeddings.weight": ("decoder/embedding", one_more_row)},
)
