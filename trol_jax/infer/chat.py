"""A conversation in the terminal."""

from collections.abc import Iterable, Iterator

from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import GREEDY, Decoding

HELP = "/image FILE begins anew with a picture, /new without, /exit ends"


def chat(
    answerer: Answerer,
    pictures: Iterable[str],
    lines: Iterable[str],
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
) -> Iterator[str]:
    """What to print for the lines that someone types, piece by piece; a line's answer ends with a line break."""
    pictures, history = list(pictures), []
    for line in map(str.strip, lines):
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return
        if command in ("/new", "/image"):
            pictures, history = [rest.strip()] if rest.strip() else [], []
        elif command.startswith("/"):
            yield f"{HELP}\n"
        elif line:
            said = ""
            try:
                for piece in answerer.reply(Question(line, pictures, history), max_new_tokens, decoding):
                    said += piece
                    yield piece
                history.append((line, said))
            except UserError as error:
                yield f"error: {error}"
            yield "\n"
