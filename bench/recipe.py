"""What each stage of `make recipe` came to, and whether the exported model gives the same answers.

python -m launch.bench recipe --dir=runs/recipe
"""

import json
import sys
from pathlib import Path

from absl import flags

from trol_jax.errors import UserError
from trol_jax.evals.easy_vqa import KINDS
from trol_jax.evals.runner import ANSWERS, RESULT
from trol_jax.journal import write

DIR = flags.DEFINE_string("dir", "runs/recipe", "Folder of the stages.")
STAGES = {
    "base": "the language model alone, one pass, blind",
    "step1_whole": "step 1: projector and gates, over nf4",
    "step2_whole": "step 2: QLoRA, merged",
    "again": "exported to the released layout, imported again",
}
TABLE = "recipe.md"


def run() -> None:
    folder = Path(DIR.value)
    results = {stage: json.loads(_read(folder / stage / RESULT)) for stage in STAGES}
    text = table(results)
    write(folder / TABLE, text.encode())
    print(text)
    one, other = ([said(line) for line in _read(folder / stage / ANSWERS).splitlines()] for stage in list(STAGES)[-2:])
    different = sum(a != b for a, b in zip(one, other, strict=True))
    print(f"{len(one) - different:,} of {len(one):,} answers are the same before and after export")
    if different:
        sys.exit(1)


def table(results: dict[str, dict]) -> str:
    """Markdown: a line a stage, the accuracy of each kind of question in percent."""
    kinds = [*KINDS, "all"]
    lines = [f"| stage | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}"]
    for stage, result in results.items():
        parts = [*(result["by_kind"][kind] for kind in KINDS), result]
        shares = " | ".join(f"{100 * part['accuracy']:.2f}" for part in parts)
        lines.append(f"| {STAGES[stage]} | {shares} |")
    return "\n".join(lines) + "\n"


def said(line: str) -> tuple[int, str]:
    values = json.loads(line)
    return values["id"], values["prediction"]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; run `make recipe`") from None
