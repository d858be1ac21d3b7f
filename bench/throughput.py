"""Mixed requests answered side by side against one at a time, by random weights of a size.

    python -m launch.bench throughput [--variant=tiny_phi3] [--requests=64] [--slots=16]

Half of them have a picture, one in five is drawn; prompts have 4 to 90 tokens beside the picture's, answers 16 to 63.
"""

import time

import jax
import numpy as np
from absl import flags

from bench import infer
from trol_jax.infer.decoding import Decoding
from trol_jax.infer.engine import Engine
from trol_jax.infer.server import Request, Server
from trol_jax.models.trol import TroL
from trol_jax.models.variants import get_variant

flags.set_default(infer.VARIANT, "tiny_phi3")
REQUESTS = flags.DEFINE_integer("requests", 64, "How many.", lower_bound=1)
SLOTS = flags.DEFINE_list("slots", ["8", "16", "32"], "Answers side by side.")
flags.register_validator("slots", *infer.COUNTS)


def run() -> None:
    config = infer.cut(get_variant(infer.VARIANT.value), infer.LAYERS.value)
    model = TroL(config, infer.DTYPE.value, separate=True)
    params = infer.random_params(model, infer.KIND.value or infer.DTYPE.value)
    print(f"{config.name}, {REQUESTS.value} requests, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    alone, slow = None, 0.0
    for slots in [1, *map(int, SLOTS.value), 1]:
        answers, seconds = answered(
            Engine(model, params, (), slots), [request(config, i) for i in range(REQUESTS.value)]
        )
        alone, slow = alone or answers, slow or seconds
        tokens = sum(map(len, answers))
        print(
            f"{slots:>3} at a time: {seconds:.3f} s, {tokens / seconds:,.0f} tokens/s, "
            f"{slow / seconds:.2f} times the first, {'same' if answers == alone else 'OTHER'} answers",
            flush=True,
        )


def request(config, i: int) -> Request:
    rng = np.random.default_rng(i)
    side, text = config.vision.image_size, rng.integers(4, 200, rng.integers(4, 91)).tolist()
    tiles = rng.integers(0, 256, (1, side, side, 3), np.uint8) if i % 2 else None
    picture = [config.image_token] * (config.image_tokens if i % 2 else 0)
    decoding = Decoding(temperature=1.0, seed=i) if i % 5 == 0 else Decoding()
    return Request(picture + text, tiles, int(rng.integers(16, 64)), decoding)


def answered(engine: Engine, requests: list[Request]) -> tuple[list[list[int]], float]:
    """Answers, and the least seconds of several rounds: in the first of them all is compiled."""
    taken = []
    with Server(engine) as server:
        for _ in range(infer.REPEAT.value + 2):
            copies = [Request(each.tokens, each.tiles, each.max_new_tokens, each.decoding) for each in requests]
            start = time.perf_counter()
            for each in copies:
                server.submit(each)
            answers = [each.result() for each in copies]
            taken.append(time.perf_counter() - start)
    return answers, min(taken)
