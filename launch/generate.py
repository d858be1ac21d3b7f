"""Answer one question: python -m launch.generate --checkpoint=runs/quickstart --image=FILE --question=TEXT"""

from absl import flags

from launch import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
IMAGE = flags.DEFINE_string("image", None, "Picture file, of up to 40 megapixels; without it only the text is asked.")
QUESTION = flags.DEFINE_string("question", None, "What to ask.")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 64, "Length of the answer at most.", lower_bound=1, upper_bound=8192
)
BEAMS = flags.DEFINE_integer("beams", 1, "Search with so many candidates; the original's evaluation takes 5.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Draw tokens; 0 = take the most likely one.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many tokens, 0 = from all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that have this probability together.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of what is drawn.")


def main(_):
    from trol_jax.data.images import load_image
    from trol_jax.errors import UserError
    from trol_jax.infer.answer import Answerer
    from trol_jax.infer.decoding import Decoding

    if not QUESTION.value.strip():
        raise UserError("--question is empty; write one")
    if IMAGE.value == "":
        raise UserError("--image is empty; name a picture, or leave it out")
    image = None if IMAGE.value is None else load_image(IMAGE.value)
    decoding = Decoding(
        beams=BEAMS.value, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value, seed=SEED.value
    )
    (answer,) = Answerer.load(CHECKPOINT.value).answer([(image, QUESTION.value)], MAX_NEW_TOKENS.value, decoding)
    print(answer.text or "(an empty answer)")


if __name__ == "__main__":
    cli.run(main, required=["checkpoint", "question"])
