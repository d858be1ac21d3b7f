"""CLIP ViT-L/14 as transformers names it (CLIPVisionModel), the tower of TroL-1.8B and 7B."""

from convert.rules import table
from convert.transforms import join_qkv, join_qkv_bias, linear, patch

_LAYER = {
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"): ("qkv/kernel", join_qkv),
    ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"): ("qkv/bias", join_qkv_bias),
    "self_attn.out_proj.weight": ("out/kernel", linear(2)),
    "self_attn.out_proj.bias": "out/bias",
    "layer_norm1.weight": "norm1/scale",
    "layer_norm1.bias": "norm1/bias",
    "layer_norm2.weight": "norm2/scale",
    "layer_norm2.bias": "norm2/bias",
    "mlp.fc1.weight": ("up/kernel", linear()),
    "mlp.fc1.bias": "up/bias",
    "mlp.fc2.weight": ("down/kernel", linear()),
    "mlp.fc2.bias": "down/bias",
}
_REST = {
    "embeddings.class_embedding": "class",
    "embeddings.patch_embedding.weight": ("patch/kernel", patch),
    "embeddings.position_embedding.weight": "positions",
    "pre_layrnorm.weight": "pre_norm/scale",  # as misspelt by transformers
    "pre_layrnorm.bias": "pre_norm/bias",
    "post_layernorm.weight": "post_norm/scale",
    "post_layernorm.bias": "post_norm/bias",
}
_ROOT = "vit.vision_tower.vision_model."
RULES = [
    *table(_REST, _ROOT, "vision/"),
    *table(_LAYER, f"{_ROOT}encoder.layers.{{i}}.", "vision/layers/"),
]
# Row numbers 0, 1, 2, ... that older transformers stored; they carry nothing.
ROW_NUMBERS = f"{_ROOT}embeddings.position_ids"
