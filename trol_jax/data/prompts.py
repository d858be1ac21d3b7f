"""Chat prompts of the two families, their tokens, and which tokens a model learns to write.

Source of the strings: utils/utils.py and the two modeling_trol.py of the original code.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

SYSTEM = (
    "You are AI model created by Byung-Kwan Lee, Ph.D. candidate, KAIST EE, of which AI model name is TroL "
    "(Traversal of Layers). You must give helpful, detailed, and polite answers to the user's questions"
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The marks of a family. `bos` opens a conversation, `end` closes each message."""

    name: str
    system: str
    user: str
    assistant: str
    end: str
    answer_start: str  # what the original looks for when it cuts an answer out of decoded text
    image: str  # one of these for each image token
    image_start: str
    image_end: str
    image_beyond_vocabulary: bool  # its embedding row comes after the rows that the output head can name
    specials: tuple[str, ...]  # apart from `image`
    bos: str = "<s>"
    eos: str = "</s>"


FORMATS = {
    "internlm2": ChatFormat(
        name="internlm2",
        system="[UNUSED_TOKEN_146]system\n",
        user="[UNUSED_TOKEN_146]user\n",
        assistant="[UNUSED_TOKEN_146]assistant\n",
        end="[UNUSED_TOKEN_145]",
        answer_start="assistant\n",
        image="<image>",
        image_start="",
        image_end="",
        image_beyond_vocabulary=True,
        specials=("<unk>", "<s>", "</s>", "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"),
    ),
    "phi3": ChatFormat(
        name="phi3",
        system="<|system|>\n",
        user="<|user|>\n",
        assistant="<|assistant|>\n",
        end="<|end|>",
        answer_start="<|assistant|>\n",
        image="<IMG_CONTEXT>",
        image_start="<img>",
        image_end="</img>",
        image_beyond_vocabulary=False,
        specials=("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<img>", "</img>"),
    ),
}


Question = str | Sequence[str | int]


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation as arrays of one length.

    tokens, positions, turn_ids: int32[T]; turn_ids is 0 for what every turn sees and k for turn k alone (1, 2, ...).
    loss_mask: bool[T], True for the tokens to be predicted: the answers, each with the end mark that stops it.
    """

    tokens: np.ndarray
    positions: np.ndarray
    turn_ids: np.ndarray
    loss_mask: np.ndarray


def render_prompt(format: ChatFormat, question: str, image_tokens: int, system: str = SYSTEM) -> str:
    """The prompt as text. `image_tokens` = 0: no picture; `system` = "": no system message."""
    opening = f"{format.system}{system}{format.end}\n" if system else ""
    picture = f"{format.image_start}{format.image * image_tokens}{format.image_end}" if image_tokens else ""
    return f"{format.bos}{opening}{format.user}{picture}{question}{format.end}\n{format.assistant}"


def parse_answer(format: ChatFormat, text: str) -> str:
    """The answer in decoded text: after the last assistant mark, before the end mark, stripped."""
    return text.rsplit(format.answer_start, 1)[-1].split(format.end, 1)[0].strip()


def encode_prompt(
    tokenizer,
    format: ChatFormat,
    question: str,
    image_tokens: int | Sequence[int],
    system: str = SYSTEM,
    history: Iterable[tuple[str, str]] = (),
) -> list[int]:
    """Tokens of a prompt, up to where the answer starts; `history` holds the (question, answer) pairs before.

    image_tokens: of one picture or of several, 0 = none; they open the conversation.

    The tokens are those that `encode_chat` gives the same conversation, up to its last answer.
    """
    tokens, after = _prefix(tokenizer, format, image_tokens, system)
    for earlier, answer in history:
        tokens += _ask(tokenizer, format, earlier, after) + _answer(tokenizer, format, answer)
        tokens, after = tokens + _next(tokenizer, format), format.user
    return tokens + _ask(tokenizer, format, question, after)


def encode_chat(
    tokenizer,
    format: ChatFormat,
    turns: Sequence[tuple[Question, str]],
    image_tokens: int | Sequence[int],
    system: str = SYSTEM,
    isolate_turns: bool = False,
) -> Chat:
    """Tokens of a conversation of (question, answer) pairs; for `image_tokens` see `encode_prompt`. A question may have
    pictures anywhere, as pieces: text, and in the place of each picture the number of its tokens.

    isolate_turns=False: an ordinary conversation; every turn sees the turns before.
    isolate_turns=True: conversations of one turn each that share the opening: <s>, the system message, the user mark
    and the picture. Positions of every turn start after that opening, so that with a mask of same turn or turn 0
    (`ops.attention.prompt_mask`) each turn gives what it would give alone.

    The original's training text goes on with a line break and </s> after the end mark. An answer is over at the end
    mark, so neither is learned here, and generation stops there (`Tokenizer.end_id`).
    """
    tokens, after = _prefix(tokenizer, format, image_tokens, system)
    opening = len(tokens)
    positions, turn_ids, loss = list(range(opening)), [0] * opening, [False] * opening
    for number, (question, answer) in enumerate(turns, start=1):
        if isolate_turns or number == 1:
            ask = _ask(tokenizer, format, question, after)
        else:
            ask = _next(tokenizer, format) + _ask(tokenizer, format, question, format.user)
        piece = ask + _answer(tokenizer, format, answer)
        start = opening if isolate_turns else len(tokens)
        positions += range(start, start + len(piece))
        turn_ids += [number if isolate_turns else 0] * len(piece)
        loss += [False] * len(ask) + [True] * (len(piece) - len(ask))
        tokens += piece
    return Chat(*(np.array(values, np.int32) for values in (tokens, positions, turn_ids)), np.array(loss, bool))


# Text is encoded piece by piece, so that no token ever spans two pieces and a prompt is a prefix of its training row.
# Each piece gets the ids that it has in the whole string: `after` tells the tokeniser what it follows, TEXT any text.
# Only white space that someone's text begins with is kept apart where it would melt into the line break of a mark.
# What people write is encoded as plain text: an "<image>" inside a question is seven characters, not a picture.
TEXT = "x"


def _prefix(tokenizer, format: ChatFormat, image_tokens: int | Sequence[int], system: str) -> tuple[list[int], str]:
    """Tokens of what every turn sees, and the mark that a question follows there."""
    tokens = tokenizer.encode(format.bos + (format.system if system else format.user))
    if system:
        tokens += tokenizer.encode(system, specials=False, after=format.bos + format.system)
        tokens += tokenizer.encode(f"{format.end}\n{format.user}", after=TEXT)
    after = format.user
    for count in [image_tokens] if isinstance(image_tokens, int) else image_tokens:
        if count:
            tokens += _picture(tokenizer, format, count, after)
            after = format.image_end or format.image
    return tokens, after


def _picture(tokenizer, format: ChatFormat, count: int, after: str) -> list[int]:
    start, end = tokenizer.encode(format.image_start, after=after), tokenizer.encode(format.image_end)
    return start + [tokenizer.image_id] * count + end


def _ask(tokenizer, format: ChatFormat, question: Question, after: str) -> list[int]:
    ask = []
    for piece in [question] if isinstance(question, str) else question:
        if isinstance(piece, int):
            ask += _picture(tokenizer, format, piece, after)
            after = format.image_end or format.image
        elif piece:
            ask += tokenizer.encode(piece, specials=False, after=after)
            after = TEXT
    return ask + tokenizer.encode(f"{format.end}\n{format.assistant}", after=after)


def _answer(tokenizer, format: ChatFormat, answer: str) -> list[int]:
    tokens = tokenizer.encode(answer, specials=False, after=format.assistant)
    return tokens + tokenizer.encode(format.end, after=TEXT)


def _next(tokenizer, format: ChatFormat) -> list[int]:
    return tokenizer.encode(f"\n{format.user}", after=TEXT + format.end)
