"""Sizes of the models, as frozen dataclasses in one table.

Sources: the config.json files and the loading code of the released checkpoints (InternLM2-1.8B and 7B with CLIP
ViT-L/14 at 490 px; Phi-3-mini-128k with InternViT-300M at 448 px).
"""

import dataclasses

from trol_jax.errors import UserError
from trol_jax.ops import traversal
from trol_jax.ops.rotary import DynamicNTK, Su
from trol_jax.ops.traversal import RELEASED, Traversal


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A vision transformer. The two towers differ in the last five fields only."""

    image_size: int  # pixels
    patch_size: int  # pixels
    width: int
    hidden: int
    layers: int
    heads: int
    eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    activation: str  # "gelu" or "quick_gelu"
    outer_norms: bool  # CLIP: a norm before the layers, and one after them that TroL does not use
    patch_bias: bool  # InternViT
    layer_scale: bool  # InternViT

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder. The two backbones differ in rotary tables, partial LoRA and the extra embedding row only."""

    vocab: int  # rows of the output head
    extra_rows: int  # embedding rows beyond the vocabulary (InternLM2: one, for the image token)
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    eps: float
    rope: DynamicNTK | Su
    lora_rank: int  # partial LoRA, at image positions only; 0 = none
    lora_dropout: float = 0.05

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str
    family: str  # "internlm2" or "phi3": chat format, tokeniser, checkpoint layout
    vision: VisionConfig
    decoder: DecoderConfig
    shuffle: int  # pixel shuffle factor before the projector; 1 = none, and no norm in the projector
    image_token: int
    max_tiles: int  # 1 = the picture is squeezed to a square; else dynamic tiles
    shared_gate: bool = True  # one gate for all layers as released; False: one a layer as in the paper
    passes: int = 2
    traversal: Traversal = RELEASED

    @property
    def prompt_passes(self) -> int:
        """Passes over prompts, when answering."""
        return self.traversal.answer_passes or self.passes

    @property
    def token_passes(self) -> int:
        """Passes of each generated token, whose keys and values a cache keeps."""
        return self.prompt_passes if self.traversal.decode else 1

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture (or tile)."""
        return self.vision.patches // self.shuffle**2


CLIP_L = VisionConfig(
    image_size=490, patch_size=14, width=1024, hidden=4096, layers=24, heads=16, eps=1e-5,
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
    activation="quick_gelu", outer_norms=True, patch_bias=False, layer_scale=False,
)  # fmt: skip

INTERN_VIT_300M = VisionConfig(
    image_size=448, patch_size=14, width=1024, hidden=4096, layers=24, heads=16, eps=1e-6,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    activation="gelu", outer_norms=False, patch_bias=True, layer_scale=True,
)  # fmt: skip

INTERNLM2_1_8B = DecoderConfig(
    vocab=92544, extra_rows=1, width=2048, hidden=8192, layers=24, heads=16, kv_heads=8, eps=1e-5,
    rope=DynamicNTK(theta=1e6, factor=2.0, max_positions=32768), lora_rank=256,
)  # fmt: skip

# The lists of Phi-3-mini-128k of before July 2024, the ones the model was trained with.
PHI3_SHORT = (
    *[1.05] * 3, *[1.1] * 3, *[1.25] * 2, 1.4, 1.45, 1.55, 1.85, 1.9, *[2.0] * 19, *[2.1] * 2, 2.2,
    *[2.35] * 4, *[2.4] * 2, 2.65, 2.7, 2.9, 2.95, *[3.05] * 3,
)  # fmt: skip
PHI3_LONG = (
    1.03, 1.05, 1.05, 1.08, 1.23, 1.23, 1.30, 1.45, 1.60, 1.65, 1.90, 2.86, 3.69, 5.42, 5.49, 5.49, 9.09, 11.58,
    15.66, 15.77, 15.79, 18.36, 21.99, 23.08, 30.01, 32.35, 32.59, 35.56, 39.95, 53.84, 56.20, 57.95, 59.29, 59.77,
    59.92, 61.19, 61.96, 62.50, 63.37, 63.48, 63.48, 63.66, 63.85, 64.08, 64.76, 64.80, 64.81, 64.81,
)  # fmt: skip

PHI3_MINI = DecoderConfig(
    vocab=32064, extra_rows=0, width=3072, hidden=8192, layers=32, heads=32, kv_heads=32, eps=1e-5,
    rope=Su(theta=1e4, short=PHI3_SHORT, long=PHI3_LONG, max_positions=131072, original_max_positions=4096),
    lora_rank=0, lora_dropout=0.0,
)  # fmt: skip

# The tiny models see 64-pixel pictures, normalised by the statistics of easy-vqa's: its pale backgrounds then lie near
# zero, and shapes are learned sooner. Their vocabulary is that of the tokeniser they are trained with.
_TINY_TOWER = dict(
    image_size=64,
    patch_size=8,
    width=64,
    hidden=256,
    layers=3,
    heads=2,
    mean=(0.90, 0.90, 0.90),
    std=(0.19, 0.19, 0.20),
)
TINY_CLIP = dataclasses.replace(CLIP_L, **_TINY_TOWER)
TINY_INTERN_VIT = dataclasses.replace(INTERN_VIT_300M, **_TINY_TOWER)
TINY_INTERNLM2 = dataclasses.replace(
    INTERNLM2_1_8B, vocab=512, width=64, hidden=192, layers=3, heads=4, kv_heads=2, lora_rank=8
)
TINY_PHI3 = DecoderConfig(
    vocab=512, extra_rows=0, width=64, hidden=192, layers=3, heads=2, kv_heads=2, eps=1e-5,
    rope=Su(theta=1e4, short=(1.0,) * 16, long=(1.0,) * 16, max_positions=4096, original_max_positions=4096),
    lora_rank=0, lora_dropout=0.0,
)  # fmt: skip
# What its second pass costs, spent otherwise than on twice the layers: on an MLP that makes up for them.
TINY_PHI3_WIDER = dataclasses.replace(TINY_PHI3, hidden=468)

VARIANTS = {
    variant.name: variant
    for variant in (
        ModelConfig("trol_1_8b", "internlm2", CLIP_L, INTERNLM2_1_8B, shuffle=1, image_token=92544, max_tiles=1),
        ModelConfig(
            "trol_7b",
            "internlm2",
            CLIP_L,
            dataclasses.replace(
                INTERNLM2_1_8B, width=4096, hidden=14336, layers=32, heads=32,
                rope=DynamicNTK(theta=1e6, factor=1.0, max_positions=32768),
            ),
            shuffle=1,
            image_token=92544,
            max_tiles=1,
        ),
        ModelConfig("trol_3_8b", "phi3", INTERN_VIT_300M, PHI3_MINI, shuffle=2, image_token=32013, max_tiles=6),
        ModelConfig("tiny_internlm2", "internlm2", TINY_CLIP, TINY_INTERNLM2, shuffle=1, image_token=512, max_tiles=1),
        *(
            ModelConfig(name, "phi3", TINY_INTERN_VIT, decoder, shuffle=2, image_token=0, max_tiles=1)
            for name, decoder in (
                ("tiny_phi3", TINY_PHI3),
                ("tiny_phi3_wider", TINY_PHI3_WIDER),
                *((f"tiny_phi3_{n}_layers", dataclasses.replace(TINY_PHI3, layers=n)) for n in (1, 2, 6)),
            )
        ),
    )
}  # fmt: skip


def get_variant(name: str) -> ModelConfig:
    """The variant of this name; UserError with the known names."""
    if name not in VARIANTS:
        raise UserError(f"model {name!r} is not known; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def with_traversal(config: ModelConfig, text: str) -> ModelConfig:
    """The model with other options of `ops.traversal.Traversal`, as `tokens=image,layers=first 2`."""
    known = {field.name: field.type for field in dataclasses.fields(Traversal)}
    changes = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"traversal {part!r} is not known; give NAME=VALUE of {', '.join(known)}")
        read = {int: int, bool: {"true": True, "false": False}.__getitem__, str: str}[known[name]]
        try:
            changes[name] = read(value.lower())
        except (ValueError, KeyError):
            raise UserError(f"traversal.{name} is {value!r}, must be of type {known[name].__name__}") from None
    changed = dataclasses.replace(config.traversal, **changes)
    check_traversal(changed, config.passes, config.decoder.layers)
    return dataclasses.replace(config, traversal=changed)


def check_traversal(options: Traversal, passes: int, layers: int, where: str = "traversal") -> None:
    """UserError for options that cannot work."""
    try:
        traversal.check(options, passes, layers)
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None


def with_tokenizer(config: ModelConfig, vocab: int, image_token: int) -> ModelConfig:
    """The model resized to a tokeniser: `vocab` output rows, and the id that stands for image tokens."""
    decoder = dataclasses.replace(config.decoder, vocab=vocab)
    if image_token >= vocab + decoder.extra_rows:
        raise UserError(f"image token {image_token} has no embedding row in {config.name} with a vocabulary of {vocab}")
    return dataclasses.replace(config, decoder=decoder, image_token=image_token)
