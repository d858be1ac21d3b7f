"""Measures a checkpoint on the test questions of easy-vqa: every answer generated, scored, written down and shown."""

import itertools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from trol_jax import checkpoint, manifest, saved, version
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.data.pipeline import DataOptions
from trol_jax.evals import pictures
from trol_jax.evals.easy_vqa import is_right, score
from trol_jax.infer import weights
from trol_jax.infer.answer import Answerer, Question
from trol_jax.journal import Journal, write
from trol_jax.models.layers import anywhere

ANSWERS, RESULT, SAMPLES, GATES = "answers.jsonl", "evaluation.json", "samples.png", "gates.png"
ADDED = ("prediction", "kind", "right", "gate_image", "gate_text")  # to a question, by its answer
MAX_NEW_TOKENS = 4  # the answers are one or two tokens with their end mark; a longer one is wrong in any case


def evaluate(
    path: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 250,
    root: str | os.PathLike | None = None,
    weight_kind: str | None = None,
    cache: str | None = None,
    layout: Callable = anywhere,
    traversal: str | None = None,
    system: str | None = None,
) -> dict:
    """Ask the test questions (the first `limit` of them) and write ANSWERS, RESULT, SAMPLES and GATES into `output`.

    output: by default the run's directory. root: data folder, by default the run's. weight_kind, cache, layout,
    traversal and system: see `Answerer.load`. Started again it goes on where it was stopped, and asks nothing that was
    answered in the same way. Returns what RESULT holds.
    """
    began = time.monotonic()
    step_dir = checkpoint.resolve(path)
    settings = saved.read_settings(step_dir)
    output = run_directory(step_dir) if output is None else Path(output)
    trained_on = settings.data.root if settings and isinstance(settings.data, DataOptions) else ""
    data = EasyVQA("test", root or trained_on or None)
    everything = data.questions()
    rows = everything[:limit]
    how = f"greedy {MAX_NEW_TOKENS}{weights.named(weight_kind, cache, traversal, system)}"
    source = f"{manifest.identity(step_dir)}, {how}, data {data.fingerprint()}"

    # ------------------------------------------------------------------ what was answered before
    answers = Journal(output / ANSWERS, source, ADDED)
    known = answers.read({row["id"]: asked(row) for row in everything})
    todo = [row for row in rows if row["id"] not in known]
    if not todo and (result := complete(output, source, len(rows))):
        result["checkpoint"] = str(step_dir)  # the run may have been moved since
        right = f"{result['accuracy']:.2%} of {result['n']:,} right"
        print(f"already measured ({right}); remove {output / ANSWERS} to measure again")
        return result

    # ------------------------------------------------------------------ ask
    if todo:
        answerer = Answerer.load(step_dir, weight_kind, cache, layout, traversal, system)
        questions = [Question(row["question"], [row["image"]]) for row in todo]
        looks = dict(desc="evaluate", unit="question", mininterval=1.0, dynamic_ncols=True)
        with tqdm(initial=len(rows) - len(todo), total=len(rows), **looks) as bar:
            given = zip(todo, answerer.answer(questions, MAX_NEW_TOKENS, batch_size=batch_size), strict=True)
            while batch := list(itertools.islice(given, batch_size)):
                lines = [line(row, answer, source) for row, answer in batch]
                answers.append(lines)
                known |= {new["id"]: new for new in lines}
                bar.set_postfix(right=f"{np.mean([each['right'] for each in known.values()]):.1%}", refresh=False)
                bar.update(len(batch))
    seconds = time.monotonic() - began

    # ------------------------------------------------------------------ score, write, show
    answers.write(known[number] for number in sorted(known))
    answered = [known[row["id"]] for row in rows]
    gates = {name: mean_gate([each[f"gate_{name}"] for each in answered]) for name in ("image", "text")}
    result = score(answered) | {
        "checkpoint": str(step_dir),
        "step": manifest.read(step_dir)["step"],
        "source": source,
        "settings": {"split": "test", "limit": limit, "batch_size": batch_size, "max_new_tokens": MAX_NEW_TOKENS},
        "asked": len(todo),  # the rest was answered before
        "seconds": round(seconds, 2),
        "questions_per_second": round(len(todo) / seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        "gates": gates,
        "versions": versions(),
    }
    shown = [row | known[row["id"]] | {"image": row["image"]} for row in rows]
    write(output / SAMPLES, pictures.samples(shown, result))
    if gates["image"] or gates["text"]:
        write(output / GATES, pictures.gates(gates, result))
    write(output / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def asked(row: Mapping) -> dict:
    return {"image": os.path.basename(row["image"]), "question": row["question"], "answer": row["answer"]}


def line(row: Mapping, answer, source: str) -> dict:
    """What ANSWERS holds of a question."""
    return {
        "id": row["id"],
        **asked(row),
        "prediction": answer.text,
        "kind": row["kind"],
        "right": is_right(answer.text, row["answer"]),
        "gate_image": rounded(answer.gate_image),
        "gate_text": rounded(answer.gate_text),
        "source": source,
    }


def complete(output: Path, source: str, questions: int) -> dict | None:
    """RESULT, if it is of this checkpoint and these questions, or more, and everything else is there too."""
    try:
        result = json.loads((output / RESULT).read_bytes())
        wanted = [SAMPLES, *([GATES] if any(result["gates"].values()) else [])]
        same = result["source"] == source and result["n"] >= questions
        return result if same and all((output / name).exists() for name in wanted) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def run_directory(step_dir: Path) -> Path:
    """The directory whose checkpoints/ holds the step; of a step elsewhere the directory that it lies in."""
    return step_dir.parent.parent if step_dir.parent.name == checkpoint.CHECKPOINTS else step_dir.parent


def mean_gate(values: list[list[float] | None]) -> list[float] | None:
    """Mean over questions of float[L]; None when no question has any."""
    values = [each for each in values if each is not None]
    return rounded(np.mean(values, axis=0)) if values else None


def rounded(values: np.ndarray) -> list[float] | None:
    return None if np.isnan(values).any() else [round(float(value), 5) for value in values]


def peak_memory_mb() -> float:
    """Of this process, on the host."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def versions() -> dict[str, str]:
    return {
        "trol_jax": version.of(version.ANSWERING),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def report(result: Mapping, output: str | os.PathLike | None = None) -> str:
    """The score by kind, what it took and where the files are, as text."""
    step_dir = Path(result["checkpoint"])
    output = run_directory(step_dir) if output is None else Path(output)
    lines = [f"{'kind':<8} {'questions':>9} {'right':>7} {'%':>7} {'± s.e.':>7}"]
    for kind, part in [*result["by_kind"].items(), ("all", result)]:
        lines.append(
            f"{kind:<8} {part['n']:>9,} {part['right']:>7,} {100 * part['accuracy']:>7.2f} "
            f"{100 * part['standard_error']:>7.2f}"
        )
    lines += [trained] if (trained := training(step_dir)) else []
    lines.append(
        f"step {result['step']:,}; {result['asked']:,} questions asked in {result['seconds']:.0f} s "
        f"({result['questions_per_second']:,.0f} a second), peak memory {result['peak_memory_mb']:,} MB"
    )
    files = [path for name in (RESULT, ANSWERS, SAMPLES, GATES) if (path := output / name).exists()]
    return "\n".join([*lines, *map(str, files)])


def training(step_dir: Path) -> str:
    """How long the run was trained up to the step, from its metrics; "" where it has none."""
    settings = saved.read_settings(step_dir)
    if settings is None:
        return ""
    step, batch_size = manifest.read(step_dir)["step"], settings.batch_size
    seconds, done = 0.0, 0
    try:
        for text in (run_directory(step_dir) / "metrics.jsonl").read_text().splitlines():
            values = json.loads(text)
            if values["step"] <= step:
                if "examples_per_second" not in values:
                    continue  # an evaluation
                seconds += (values["step"] - done) * batch_size / values["examples_per_second"]
                done = values["step"]
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"trained {done:,} steps of {batch_size} pictures in {minutes} min {rest} s" if done else ""
