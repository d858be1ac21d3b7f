"""Lets a judge score answers: every answer's talk goes on by a prompt at a time, all of them side by side.

Talks follow the authors' steps and scales in words of our own, so what is judged does not compare exactly with
published scores, even of the same judge.
"""

import dataclasses
from collections.abc import Sequence

from trol_jax.evals.items import Judged, Sample, Unreadable
from trol_jax.evals.judges import Judge


def judge_all(judged: Judged, samples: Sequence[Sample], judge: Judge) -> tuple[list[Sample], int]:
    """(The samples as the judge scores them, how many it did not); those have no score and are never averaged.

    No prompt is repeated, whatever the reply.
    """
    scored, failed, talks = list(samples), 0, {}
    for place, sample in enumerate(samples):
        talks[place] = judged.talk(sample.item, sample.answer), None
    while talks:
        prompts = {}
        for place, (talk, reply) in talks.items():
            try:
                prompts[place] = talk, talk.send(reply)
            except StopIteration as end:
                scored[place] = dataclasses.replace(scored[place], parsed=end.value[0], score=end.value[1])
            except Unreadable:
                failed += 1
                scored[place] = dataclasses.replace(scored[place], parsed=None, score=None)
        said = judge.replies([prompt for _, prompt in prompts.values()])
        talks = {place: (talk, reply or "") for (place, (talk, _)), reply in zip(prompts.items(), said, strict=True)}
    return scored, failed
