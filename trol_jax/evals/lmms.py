"""TroL as a model of lmms-eval, so that its own tasks run on our checkpoints. Only lmms-eval imports this module.

It finds the model by the entry point in pyproject.toml: its environment needs this project, `pip install -e .`
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from tqdm import tqdm

from trol_jax.errors import UserError

NAME, MAX_NEW_TOKENS = "trol_jax", 1024  # where a task does not say how long an answer may be, as lmms-eval's models
NO_MARK = ("", "\n\n")  # what lmms-eval says ends an answer where the task does not


class TroL(lmms):
    """checkpoint, weights, cache: see `Answerer.load`. mesh, rules: as of the flags of `launch.generate`.
    batch_size: changes no answer. device, max_batch_size: lmms-eval gives them; the devices are those that JAX finds.
    """

    is_simple = True  # is asked a text and pictures, not a conversation

    def __init__(
        self,
        checkpoint: str,
        weights: str | None = None,
        cache: str | None = None,
        mesh: str | None = None,
        rules: str = "fsdp_tensor",
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        from trol_jax.infer.answer import Answerer
        from trol_jax.models.layers import anywhere
        from trol_jax.sharding.rules import Layout

        super().__init__()
        layout = Layout.make(mesh, rules) if mesh else anywhere
        self.answerer, self.batch_size = Answerer.load(str(checkpoint), weights, cache, layout), int(batch_size)

    def generate_until(self, requests: Sequence) -> list[str]:
        """The answers, in order; "" to a question that cannot be asked, of which a warning tells."""
        alike = collections.defaultdict(list)  # asked in one batch
        for index, request in enumerate(requests):
            alike[options(request.args[1])].append(index)
        answers = [""] * len(requests)
        with tqdm(desc=NAME, total=len(requests), unit="question", mininterval=1.0, dynamic_ncols=True) as bar:
            for how, indices in alike.items():
                questions = Questions(self.task_dict, [requests[index] for index in indices])
                given = self.answerer.answer(questions, *how, self.batch_size, skip=True)
                for index, answer in zip(indices, given, strict=True):
                    answers[index] = said(answer, requests[index])
                    self.cache_hook.add_partial("generate_until", requests[index].args[:2], answers[index])
                    bar.update()
        return answers

    def loglikelihood(self, requests):
        raise NotImplementedError("only tasks with output_type generate_until can be run: TroL answers in words")

    generate_until_multi_round = loglikelihood


@dataclasses.dataclass(frozen=True)
class Questions:
    """Made while they are asked, as the pictures of a whole task are too much to hold."""

    documents: Mapping[str, Any]  # [task][split][number]
    requests: Sequence

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator:
        from trol_jax.infer.answer import Question

        for text, _, pictures, number, task, split in (request.args for request in self.requests):
            yield Question(text, pictures(self.documents[task][split][number]) or ())


def options(how: Mapping[str, Any]) -> tuple:
    """(max_new_tokens, decoding) of a task's generation_kwargs, which are named as in transformers."""
    from trol_jax.infer.decoding import Decoding

    length, temperature = how.get("max_new_tokens") or MAX_NEW_TOKENS, how.get("temperature")
    if temperature != 0 and how.get("do_sample", temperature is not None):
        chances = dict(top_k=how.get("top_k") or 0, top_p=how.get("top_p") or 1.0)
        return length, Decoding(temperature=1.0 if temperature is None else temperature, **chances)
    penalty = 1.0 if how.get("length_penalty") is None else how["length_penalty"]
    return length, Decoding(beams=how.get("num_beams") or 1, length_penalty=penalty)


def said(answer, request) -> str:
    """The text up to the first of the task's marks."""
    _, how, _, number, task, _ = request.args
    if isinstance(answer, UserError):
        logging.getLogger(__name__).warning("%s, document %s counts as answered with nothing: %s", task, number, answer)
        return ""
    text, marks = answer.text, how.get("until") or ()
    for mark in [marks] if isinstance(marks, str) else marks:
        text = text if mark in NO_MARK else text.partition(mark)[0]
    return text.strip()


def manifest():
    """What the entry point gives lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, simple_class_path=f"{__name__}.{TroL.__name__}")
