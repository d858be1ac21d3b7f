"""easy-VQA's test questions, of the root or of the package. The original has no scoring of it, both are ours."""

from pathlib import Path

from trol_jax.data.easy_vqa import check_row, kind_of, package_data
from trol_jax.errors import UserError
from trol_jax.evals.easy_vqa import is_right
from trol_jax.evals.files import BadRow, Root, Row, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.scoring import accuracy

FOLDER, SPLIT = "easy-vqa", "test"


def read(root: Root):
    folder = root.path / FOLDER
    folder = folder if folder.exists() else package_data()

    def item(row):
        question, answer, number, *kind = checked(row)
        images = (embedded(row, folder / SPLIT / "images" / f"{number}.png"),) if root.pictures else ()
        return Item(row.number - 1, question, images, answer, {"kind": kind[0] if kind else kind_of(answer)})

    rows = Root(folder).objects(f"{SPLIT}/questions.json")
    return each((Row({"row": row.data}, row.file, row.number) for row in rows), item)


def checked(row: Row) -> list:
    try:
        return check_row(row.data["row"], f"{row.file}, row {row.number}")
    except UserError as error:
        raise BadRow(str(error), {}) from None


def embedded(row: Row, picture: Path) -> bytes:
    """The file's content, as it may lie outside of the root."""
    try:
        return picture.read_bytes()
    except OSError:
        raise row.bad(f"the picture {picture} cannot be read") from None


SCORING = Scoring(
    "exact match, any case; accuracy",
    lambda item, answer: answer.strip() or None,
    lambda item, said: float(is_right(said or "", item.gold)),
    accuracy("kind"),
)
BENCHMARK = Benchmark("easy_vqa", read, {"trol": SCORING, "standard": SCORING}, published=False)
