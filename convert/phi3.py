"""Phi-3-mini and its projector: TroL-3.8B, and the Mini-InternVL base."""

from convert import intern_vit
from convert.rules import Rule, table
from convert.transforms import group_qkv, halves, linear

_LAYER = {
    "self_attn.qkv_proj.weight": ("qkv/kernel", group_qkv),
    "self_attn.o_proj.weight": ("out/kernel", linear(2)),
    "mlp.gate_up_proj.weight": (("gate/kernel", "up/kernel"), halves),
    "mlp.down_proj.weight": ("down/kernel", linear()),
    "input_layernorm.weight": "attention_norm/scale",
    "post_attention_layernorm.weight": "mlp_norm/scale",
}
_REST = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm/scale",
    "lm_head.weight": ("head/kernel", linear()),
}
_PROJECTOR = {
    "0.weight": "norm/scale",
    "0.bias": "norm/bias",
    "1.weight": ("up/kernel", linear()),
    "1.bias": "up/bias",
    "3.weight": ("down/kernel", linear()),
    "3.bias": "down/bias",
}


def _rules(projector: str) -> list[Rule]:
    return [
        *table(_REST, "language_model.", "decoder/"),
        *table(_LAYER, "language_model.model.layers.{i}.", "decoder/layers/block/"),
        *table(_PROJECTOR, projector, "projector/"),
        *intern_vit.RULES,
    ]


RULES = _rules("vision_proj.")
BASE_RULES = _rules("mlp1.")
