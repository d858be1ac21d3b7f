"""Answer questions about pictures.

One question:       python -m launch.generate --checkpoint=runs/quickstart [--image=FILE ...] --question=TEXT
A conversation:     python -m launch.generate --checkpoint=runs/quickstart [--image=FILE ...] --chat
A file of them:     python -m launch.generate --checkpoint=runs/quickstart --questions=FILE.jsonl --answers=FILE.jsonl
(trol_jax/infer/questions.py says what such a file holds)

Pictures have up to 40 megapixels, in any common format. They are turned upright by their EXIF mark; of an animation the
first frame counts, transparent parts are white, 16-bit grey is scaled to 8 bits. Others are refused by name.
"""

import sys

from absl import flags

from launch import cli, model

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
IMAGE = flags.DEFINE_multi_string("image", [], "Picture file; may be given several times.")
QUESTION = flags.DEFINE_string("question", None, "What to ask.")
CHAT = flags.DEFINE_bool("chat", False, "Ask on and on, each question after what was said before.")
QUESTIONS = flags.DEFINE_string("questions", None, "File of questions, a JSON object a line.")
ANSWERS = flags.DEFINE_string("answers", None, "File that their answers are appended to; started again it goes on.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Questions of a file at a time; changes no answer.", lower_bound=1)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 64, "Length of the answer at most.", lower_bound=1, upper_bound=8192
)
BEAMS = flags.DEFINE_integer("beams", 1, "Search with so many candidates; the original's evaluation takes 5.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Draw tokens; 0 = take the most likely one.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many tokens, 0 = from all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that have this probability together.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of what is drawn; line N of a file draws with seed + N.")


def main(_):
    from trol_jax.errors import UserError
    from trol_jax.infer.answer import Answerer, Question
    from trol_jax.infer.chat import HELP, chat
    from trol_jax.infer.decoding import Decoding

    if (QUESTION.value is not None) + CHAT.value + (QUESTIONS.value is not None) != 1:
        raise UserError("give one of --question, --chat and --questions")
    if "" in IMAGE.value:
        raise UserError("--image is empty; name a picture, or leave it out")
    if QUESTION.value is not None and not QUESTION.value.strip():
        raise UserError("--question is empty; write one")
    if (TOP_K.value or TOP_P.value != 1) and not TEMPERATURE.value:
        raise UserError("--top_k and --top_p choose what is drawn from; give a --temperature, or leave them out")
    if ANSWERS.value is not None and QUESTIONS.value is None:
        raise UserError("--answers goes with --questions; an answer to --question or --chat is printed")
    decoding = Decoding(
        beams=BEAMS.value, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value, seed=SEED.value
    )
    cli.keep_compiled()
    if QUESTIONS.value is not None:
        return answer_file(decoding)
    answerer = Answerer.load(CHECKPOINT.value, **model.options(), layout=model.layout())
    if CHAT.value:
        if sys.stdin.isatty():
            print(HELP)
        pieces = chat(answerer, IMAGE.value, typed(), MAX_NEW_TOKENS.value, decoding)
    else:
        pieces = answerer.reply(Question(QUESTION.value, IMAGE.value), MAX_NEW_TOKENS.value, decoding)
    said = ""
    for piece in pieces:
        said += piece
        print(piece, end="", flush=True)
    if not CHAT.value:
        print("" if said else "(an empty answer)")


def typed():
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def answer_file(decoding) -> None:
    from tqdm import tqdm

    from trol_jax import checkpoint, manifest
    from trol_jax.errors import UserError
    from trol_jax.infer import questions, weights
    from trol_jax.infer.answer import Answerer

    if not ANSWERS.value:
        raise UserError("--answers is missing; name the file that the answers go to")
    if IMAGE.value:
        raise UserError('--image does not go with --questions; each line of the file names its own under "image"')
    count = len(questions.read(QUESTIONS.value))
    answerer = Answerer.load(CHECKPOINT.value, **model.options(), layout=model.layout())
    checkpoint_named = manifest.identity(checkpoint.resolve(CHECKPOINT.value))
    source = f"{checkpoint_named}, {decoding} {MAX_NEW_TOKENS.value}{weights.named(**model.options())}"
    options = (source, MAX_NEW_TOKENS.value, decoding, BATCH_SIZE.value)
    lines = questions.answer(answerer, QUESTIONS.value, ANSWERS.value, *options)
    failed = [line for line in tqdm(lines, total=count, unit="question", dynamic_ncols=True) if "error" in line]
    if failed:
        raise UserError(
            f"{len(failed)} of {count} questions could not be asked, the first in line {failed[0]['id']} of "
            f"{QUESTIONS.value}: {failed[0]['error']}; mend them and start again"
        )


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"])
