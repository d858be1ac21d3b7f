"""InternViT-300M, the tower of TroL-3.8B."""

from convert.rules import table
from convert.transforms import flat, linear, patch, same

_LAYER = {
    "attn.qkv.weight": ("qkv/kernel", linear()),
    "attn.qkv.bias": ("qkv/bias", flat),
    "attn.proj.weight": ("out/kernel", linear(2)),
    "attn.proj.bias": "out/bias",
    "norm1.weight": "norm1/scale",
    "norm1.bias": "norm1/bias",
    "norm2.weight": "norm2/scale",
    "norm2.bias": "norm2/bias",
    "mlp.fc1.weight": ("up/kernel", linear()),
    "mlp.fc1.bias": "up/bias",
    "mlp.fc2.weight": ("down/kernel", linear()),
    "mlp.fc2.bias": "down/bias",
    "ls1": "scale1",
    "ls2": "scale2",
}
_REST = {
    "embeddings.class_embedding": ("class", same(leading=2)),
    "embeddings.patch_embedding.weight": ("patch/kernel", patch),
    "embeddings.patch_embedding.bias": "patch/bias",
    "embeddings.position_embedding": ("positions", same(leading=1)),
}
RULES = [
    *table(_REST, "vision_model.", "vision/"),
    *table(_LAYER, "vision_model.encoder.layers.{i}.", "vision/layers/"),
]
