"""A web page to ask about a picture, which then shows what the model looked at twice. Needs no internet."""

import base64
import dataclasses
import functools
import html
import io
import os
import pathlib
import re
from collections.abc import Iterator

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import fastapi
import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like
from PIL import Image

from trol_jax.data.easy_vqa import KINDS, EasyVQA, kind_of
from trol_jax.data.images import load_image
from trol_jax.errors import UserError
from trol_jax.evals import heat
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import Decoding
from trol_jax.infer.server import Request
from trol_jax.serve.models import Served
from trol_jax.serve.openai import LETTERS

TITLE = "TroL: what does the model look at twice?"
INTRO = "# TroL\nAsk about a picture, and see what the model looks at twice."
LEGEND = (
    "Each layer runs twice with the same weights, and a gate <i>s</i> decides token by token how much of the second "
    "pass is kept: <i>y</i> = (1 &minus; <i>s</i>)&thinsp;<i>h</i>₁ + <i>s</i>&thinsp;<i>h</i>₂. "
    "Colours stretch from the least to the greatest <i>s</i> shown."
)
EMPTY = "<p class='quiet'>Here the gates of the picture and of the question will be shown.</p>"
AT_ONCE = 32  # questions that hold a thread of the 40 that gradio has
SIDE = 512  # pixels of a picture as shown
KEPT = 3600  # seconds that an uploaded picture stays on the disk
REMOTE = re.compile(r"/file[=/]https?:", re.IGNORECASE)  # a path of gradio's that fetches what it names
LOOK = dict(
    theme=gr.themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ),
    css_paths=[pathlib.Path(__file__).with_name("page.css")],
)


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """What the colours are of. pictures: as shown, with their gates; words: pieces of the question with theirs."""

    layers: int
    pictures: list[tuple[np.ndarray, heat.Map]]
    words: list[tuple[str, np.ndarray]]

    @classmethod
    def of(cls, answerer: Answerer, request: Request, question: str, pictures: list[np.ndarray]) -> "Shown":
        tokenizer, is_image = answerer.tokenizer, np.array(request.tokens) == answerer.model.config.image_token
        sizes = [picture.shape[:2] for picture in pictures]
        maps = heat.maps(request.gate[:, is_image], sizes, answerer.model.config)
        words = heat.words(tokenizer, request.tokens, request.gate, question, maps, answerer.system)
        return cls(len(request.gate), list(zip(map(_scaled, pictures), maps, strict=True)), words)


# ---------------------------------------------------------------------- what is shown, as HTML
def show(shown: Shown | None, layer: int) -> str:
    """layer: 1, 2, ..., the last for one beyond it; 0 = the mean of all, as is None."""
    if shown is None:
        return EMPTY
    layer = int(min(max(layer or 0, 0), shown.layers))
    which = f"layer {layer} of {shown.layers}" if layer else f"mean of {shown.layers} layers"
    pictures = _pictures(shown, layer, which) if shown.pictures else ""
    words = _words(shown, layer, which) if shown.words else ""
    return f"{pictures}{words}<p class='quiet'>{LEGEND}</p>"


def _pictures(shown: Shown, layer: int, which: str) -> str:
    squares = [(picture, each) for picture, of in shown.pictures for each in (of.cells, of.whole) if each is not None]
    values = [heat.layer(each, layer) for _, each in squares]
    low, high = min(each.min() for each in values), max(each.max() for each in values)
    drawn = [heat.paint(picture, each, low, high) for (picture, _), each in zip(squares, values, strict=True)]
    images = "".join(f"<img alt='gate over the picture, {which}' src='{_source(each)}'>" for each in drawn)
    mean = np.mean(np.concatenate([each.ravel() for each in values]))
    return f"{_scale('Picture', which, mean, low, high)}<div class='maps'>{images}</div>"


def _words(shown: Shown, layer: int, which: str) -> str:
    values = np.array([heat.layer(gate, layer) for _, gate in shown.words])
    low, high = values.min(), values.max()
    marked = ""
    for (text, _), value, color in zip(shown.words, values, heat.colors(values, low, high), strict=True):
        ink = "#000" if color @ (0.299, 0.587, 0.114) > 110 else "#fff"
        style = f"background:rgb({','.join(map(str, color))});color:{ink}"
        marked += f"<span style='{style}' title='{value:.3f}'>{html.escape(text)}</span>"
    return f"{_scale('Question', which, values.mean(), low, high)}<p class='words'>{marked}</p>"


def _scale(name: str, which: str, mean: float, low: float, high: float) -> str:
    stops = ",".join(f"rgb({','.join(map(str, color))})" for color in heat.colors(np.linspace(0, 1, 9), 0, 1))
    bar = f"{low:.2f}<i style='background:linear-gradient(90deg,{stops})'></i>{high:.2f}"
    return f"<div class='scale'><span><b>{name}</b>, {which}: {mean:.2f} on average</span><span>{bar}</span></div>"


def _scaled(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    factor = SIDE / max(image.size)
    return np.asarray(image.resize([max(1, round(side * factor)) for side in image.size]))


def _source(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


# ---------------------------------------------------------------------- questions
class Desk:
    """Takes the questions of the pages that are open, one at a time of each."""

    def __init__(self, served: dict[str, Served]):
        self.served, self._asked = served, {}

    def ask(
        self, name: str, path: str | None, text: str, most: float, temperature: float, seed: float, layer: int,
        page: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        """(answer so far, Shown, its HTML), again and again; what a person did wrong raises gr.Error.

        Colours go with the first piece alone: afterwards they follow the slider.
        """
        begun = False
        try:
            for said, shown in self._answers(name, path, text, Decoding(**_drawn(temperature, seed)), most, page):
                yield said, *([gr.skip()] * 2 if begun else [shown, show(shown, layer)])
                begun = True
        except UserError as error:
            raise gr.Error(html.escape(str(error)), title="Not asked", print_exception=False) from None

    def _answers(self, name, path, text, decoding, most, page) -> Iterator[tuple[str, Shown]]:
        answerer, server = self.served[name].answerer, self.served[name].server
        if len(text) > LETTERS * server.engine.length:  # tokenising holds up all threads
            raise UserError(f"the question has {len(text):,} letters; shorten it")
        try:
            pictures = [load_image(pathlib.Path(path).read_bytes())] if path else []
        except FileNotFoundError:
            raise UserError("the picture is no longer here; load it again") from None
        most = int(_number("Longest answer", most))
        request = answerer.request(Question(text, pictures), most, decoding, server.engine.length)
        self.stop(page)
        server.submit(request)
        self._asked[page.session_hash] = request
        said, shown = "", None
        try:
            for piece in answerer.stream(request):
                said, shown = said + piece, shown or Shown.of(answerer, request, text, pictures)
                yield said, shown
            if not said and request.gate is not None and self._asked.get(page.session_hash) is request:
                yield "(an empty answer)", Shown.of(answerer, request, text, pictures)
        finally:
            request.cancel()
            if self._asked.get(page.session_hash) is request:
                del self._asked[page.session_hash]

    def stop(self, page: gr.Request) -> None:
        if request := self._asked.pop(page.session_hash, None):
            request.cancel()

    def clear(self, page: gr.Request) -> tuple:
        """(picture, question, answer, Shown, its HTML), all empty."""
        self.stop(page)
        return None, "", "", None, EMPTY


def _drawn(temperature: float, seed: float) -> dict:
    return dict(temperature=float(_number("Temperature", temperature)), seed=int(_number("Seed", seed)))


def _number(name: str, value: float | None) -> float:
    if value is None:
        raise UserError(f"{name} is empty; give it a number")
    if not isinstance(value, int | float):
        raise UserError(f"{name} is {value!r:.40}; give it a number")
    return value


# ---------------------------------------------------------------------- the page
def page(served: dict[str, Served]) -> gr.Blocks:
    """Asks the checkpoints of this process. To be shown with `mount`."""
    desk, layers = Desk(served), max(one.answerer.model.config.decoder.layers for one in served.values())
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown(INTRO)
        shown = gr.State()
        with gr.Row(elem_id="desk"):  # page.css says where its columns are
            with gr.Column(elem_id="asking"):
                name = gr.Dropdown(list(served), label="Checkpoint", interactive=True, visible=len(served) > 1)
                picture = gr.Image(
                    label="Picture (or none)", type="filepath", image_mode=None, sources=["upload", "clipboard"],
                    height=300, buttons=[], elem_id="picture",
                )  # fmt: skip
                picture.preprocess = _uploaded  # `load_image` alone opens it
                hint = "What is in the picture? Shift+Enter asks."
                question = gr.Textbox(label="Question", placeholder=hint, lines=2, max_lines=6)
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
                    stop = gr.Button("Stop", variant="stop", min_width=80, elem_id="stop")
                    clear = gr.Button("Clear", min_width=80, elem_id="clear")
                with gr.Accordion("Options", open=False):
                    most = gr.Number(64, label="Longest answer, tokens", precision=0, minimum=1)
                    temperature = gr.Number(0, label="Temperature (0: the most likely word)", minimum=0, step=0.1)
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Column(elem_id="told"):
                answer = gr.Textbox(label="Answer", interactive=False, lines=2, max_lines=12, elem_id="answer")
                layer = gr.Slider(0, layers, 0, step=1, label="Layer (0: mean of all)", elem_id="layer")
                colors = gr.HTML(EMPTY, elem_id="colors")
            for number in (most, temperature, seed, layer):
                number.preprocess = lambda given: given  # what is wrong with it is told by `Desk`
            if examples := _examples():
                with gr.Column(elem_id="examples"):
                    gr.Examples(examples, [picture, question], label="Examples")

        given, results = [name, picture, question, most, temperature, seed, layer], [answer, shown, colors]
        private = dict(api_visibility="private")
        asked = gr.on(
            [ask.click, question.submit], desk.ask, given, results, concurrency_limit=AT_ONCE,
            show_progress_on=[answer], trigger_mode="multiple", **private,
        )  # fmt: skip
        at_once = dict(queue=False, show_progress="hidden", **private)
        stop.click(desk.stop, cancels=[asked], **at_once)
        clear.click(desk.clear, None, [picture, question, answer, shown, colors], cancels=[asked], **at_once)
        layer.input(show, [shown, layer], colors, trigger_mode="always_last", **at_once)
        blocks.unload(desk.stop)
    return blocks


def mount(app: fastapi.FastAPI, blocks: gr.Blocks, *, queue: int = 64, max_upload_mb: int = 32, key: str = "") -> None:
    """Shows the page at "/" of an app, behind its other routes. key: the password of the user `trol`; "" = none.

    queue: questions that may wait beyond the `AT_ONCE` that are asked.
    """
    blocks.queue(max_size=max(1, queue), api_open=False)
    limits = dict(max_file_size=f"{max_upload_mb}mb", show_error=False, ssr_mode=False, enable_monitoring=False)
    limits["auth"] = ("trol", key) if key else None
    app.add_middleware(Unproxied)
    gr.mount_gradio_app(app, blocks, "/", footer_links=[], run_history=False, **limits, **LOOK)
    blocks.has_launched = True  # else gradio, as far as it is mounted, takes any file of this machine for an upload
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = functools.partial(_unless_remote, block)


class Unproxied:
    """ASGI middleware: nobody has this machine fetch an address for them."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        refused = scope["type"] == "http" and REMOTE.search(scope["path"])
        await (fastapi.Response(status_code=403) if refused else self.app)(scope, receive, send)


async def _unless_remote(block: gr.blocks.Block, place: str | None) -> str | None:
    """In place of a method of each block, which would fetch an address that a made-up request names."""
    if is_http_url_like(str(place)):
        raise gr.Error("pictures are uploaded, not fetched", print_exception=False)
    return await type(block).async_move_resource_to_block_cache(block, place)


def _uploaded(given: FileData | None) -> str | None:
    """Its path, which a browser sends and somebody may make up."""
    if given is None or given.path is None:
        return None
    if not pathlib.Path(given.path).resolve().is_relative_to(pathlib.Path(get_upload_folder()).resolve()):
        raise gr.Error("the picture was not uploaded", print_exception=False)
    return given.path


def _examples() -> list[list[str]]:
    """Test pictures of easy-vqa, if the package is installed, each with a question of another kind."""
    try:
        pictures = EasyVQA("test")
    except UserError:
        return []
    return [
        next([each["image"], question] for question, answer in each["turns"] if kind_of(answer) == kind)
        for kind, each in zip(KINDS, pictures, strict=False)
    ]
