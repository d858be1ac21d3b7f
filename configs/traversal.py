"""The options of traversal, `config.model.traversal`: a line each, explained in `trol_jax/ops/traversal.py`."""

import ml_collections


def as_released() -> ml_collections.ConfigDict:
    options = ml_collections.ConfigDict()
    options.mix = "gate"  # gate, first, second, random, uniform, constant
    options.gate = "linear"  # linear, two_linear; of each layer its own by config.model.shared_gate = False
    options.gates = 1  # for all further passes, or one for each: config.model.passes - 1
    options.tokens = "all"  # all, prompt, image, text
    options.layers = "all"  # all, "first 2", "last 2", "every 2", or numbers as "0 2"
    options.decode = False  # generated tokens too
    options.answer_passes = 0  # when answering; 0 = as in training
    return options
