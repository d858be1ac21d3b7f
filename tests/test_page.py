"""The web page as a person meets it, in Chromium."""

import contextlib
import pathlib
import shutil
import threading
import time

import pytest
from PIL import Image, ImageDraw

from fixtures import nano_variants, save_run
from trol_jax.infer.answer import Answerer
from trol_jax.infer.engine import Engine
from trol_jax.serve import models

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
api = pytest.importorskip("trol_jax.serve.api", exc_type=ModuleNotFoundError)
http = pytest.importorskip("trol_jax.serve.http", reason="uvicorn is not installed", exc_type=ModuleNotFoundError)
CHROMIUM = shutil.which("chromium")
ARGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),  # gradio sets it, for pandas 2
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A checkpoint under two names, which never stops by itself and says 8 tokens in a tenth of a second."""
    run, size, decode = tmp_path_factory.mktemp("runs") / "alpha", dict(size=2, length=4096, waiting=4), Engine.decode

    def slowly(*given):
        time.sleep(0.1)
        return decode(*given)

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(Answerer, "stop", ())
        patch.setattr(Engine, "decode", slowly)
        with nano_variants():
            served = models.load([save_run(run)], **size)
        answerer = served["alpha"].answerer
        served["beta"] = models.Served("beta", answerer, answerer.serve(**size))
        for one in served.values():
            stack.callback(one.server.close)
        yield served


@pytest.fixture(scope="module")
def address(served):
    page = pytest.importorskip("trol_jax.serve.page", reason="gradio is not installed", exc_type=ModuleNotFoundError)
    app = api.app(served)
    page.mount(app, page.page(served), max_upload_mb=1)
    with http.listen("127.0.0.1", 0) as opened:
        server = http.Server(app, served)
        thread = threading.Thread(target=server.run, args=[[opened]])
        thread.start()
        yield http.url(opened)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """Every address that it asks for is noted in page.requests."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(20_000)
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="Ask").wait_for()
    yield page
    page.close()


@pytest.fixture
def picture(tmp_path) -> pathlib.Path:
    image = Image.new("RGB", (48, 32), "white")
    ImageDraw.Draw(image).ellipse((4, 4, 20, 20), fill="red")
    image.save(tmp_path / "red.png")
    return tmp_path / "red.png"


def ask(page, question: str, longest: int = 16) -> None:
    field = page.get_by_label("Longest answer, tokens")
    if not field.is_visible():
        page.get_by_text("Options").click()
    field.fill(str(longest))
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask").click()


def answer(page) -> str:
    return page.get_by_label("Answer", exact=True).input_value()


def until(page, is_so, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        page.wait_for_timeout(50)


def test_a_picture_is_asked_about_and_its_map_follows_the_layer(page, address, picture):
    page.set_input_files("#picture input[type=file]", picture)
    page.locator("#picture img").wait_for()
    ask(page, "what shape is in the image?")
    image = page.locator("#colors .maps img")
    image.wait_for()
    assert image.get_attribute("alt") == "gate over the picture, mean of 2 layers"
    assert page.locator("#colors .words").inner_text() == "what shape is in the image?"
    assert page.locator("#colors .words span").count() > 3
    until(page, lambda: answer(page))
    seen = {image.get_attribute("src")}
    for layer in (1, 2):
        page.locator("#layer input[type=number]").fill(str(layer))
        until(page, lambda layer=layer: image.get_attribute("alt").endswith(f"layer {layer} of 2"))
        seen.add(image.get_attribute("src"))
    assert len(seen) == 3
    mean = "mean of 2 layers"
    for given, shown in (("7", "layer 2 of 2"), ("", mean), ("1", "layer 1 of 2"), ("-1", mean)):
        page.locator("#layer input[type=number]").fill(given)
        until(page, lambda shown=shown: image.get_attribute("alt").endswith(shown))
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Here the gates").wait_for()
    assert (answer(page), page.locator("#picture img").count()) == ("", 0)
    elsewhere = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere


def test_an_answer_is_streamed_and_stopped_by_its_button_or_by_leaving(page, served):
    page.get_by_label("Checkpoint").click()
    page.get_by_role("option", name="beta").click()
    load = lambda: served["beta"].server.load  # noqa: E731
    ask(page, "is there a red shape in the image?", longest=4000)
    until(page, lambda: answer(page))
    begun = len(answer(page))
    until(page, lambda: len(answer(page)) > begun)
    assert load() == (1, 0)
    assert page.locator("#colors .maps").count() == 0
    page.get_by_role("button", name="Stop").click()
    until(page, lambda: load() == (0, 0), seconds=3)
    page.wait_for_timeout(300)
    said = answer(page)
    page.wait_for_timeout(500)
    assert answer(page) == said
    ask(page, "is it blue?", longest=4000)
    until(page, lambda: load() == (1, 0))
    page.goto("about:blank")
    until(page, lambda: load() == (0, 0))


def test_the_next_question_takes_the_place_of_one_that_is_answered(page, served):
    ask(page, "is it red?", longest=4000)
    until(page, lambda: served["alpha"].server.load == (1, 0) and answer(page))
    page.locator("#layer input[type=number]").fill("1")
    until(page, lambda: "layer 1 of 2" in page.locator("#colors").inner_text())
    before = answer(page)
    until(page, lambda: len(answer(page)) > len(before))
    assert "layer 1 of 2" in page.locator("#colors").inner_text()  # what a person chose stays
    ask(page, "what shape is it?", longest=4)
    until(page, lambda: served["alpha"].server.load == (0, 0) and "shape" in page.locator("#colors").inner_text())
    until(page, lambda: len(answer(page)) < len(before))


def test_what_cannot_be_asked_is_said_in_a_line(page, address, picture):
    def told(text):
        page.get_by_text(text).wait_for()

    large, text = picture.with_name("large.png"), picture.with_name("text.png")
    large.write_bytes(picture.read_bytes() + bytes(1_100_000))
    page.set_input_files("#picture input[type=file]", large)
    told("exceed the maximum allowed size of 1.0 Mb")
    sent = {"name": large.name, "mimeType": "image/png", "buffer": large.read_bytes()}
    assert page.request.post(f"{address}/gradio_api/upload", multipart={"files": sent}).status == 413
    ask(page, "  ")
    told("the question is empty; write one")
    ask(page, "is it red?", longest=5000)
    told("shorten the question or max_new_tokens")
    ask(page, "is it red? " * 100_000)
    told("the question has 1,100,000 letters; shorten it")
    ask(page, "is it red?", longest=0)
    told("max_new_tokens is 0, must be at least 1")
    text.write_text("no picture")
    page.set_input_files("#picture input[type=file]", text)
    page.locator("#picture img").wait_for(state="attached")
    ask(page, "is it red?")
    told("the picture is not a picture")
    assert "Traceback" not in page.content()


def test_files_of_the_machine_and_remote_ones_are_no_uploads(page, address, picture, monkeypatch):
    fetched = []
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", lambda url, **_: fetched.append(url))
    dependencies = page.request.get(f"{address}/config").json()["dependencies"]
    number = next(each["id"] for each in dependencies if each["api_name"] == "ask")
    mark = {"meta": {"_type": "gradio.FileData"}}
    remote = "http://example.org/red.png"
    made_up = [(1, picture, {}), (1, picture, mark), (2, picture, mark), (1, remote, mark), (2, remote, mark)]
    for session, (place, path, given) in zip("abcde", made_up, strict=True):  # as a picture, as a question
        data = ["alpha", None, "is it red?", 4, 0, 0, 0]
        data[place] = {"path": str(path), **given}
        asked = dict(data=data, fn_index=number, session_hash=session)
        assert page.request.post(f"{address}/gradio_api/queue/join", data=asked).ok
        told = page.request.get(f"{address}/gradio_api/queue/data?session_hash={session}").text()
        assert '"success":false' in told.replace(" ", "")
        assert '"success":true' not in told.replace(" ", "")
    for way in ("file=", "file/", "FILE="):
        refused = page.request.get(f"{address}/gradio_api/{way}{remote}", max_redirects=0)
        assert (refused.status, refused.text()) == (403, "") or refused.status == 404
    assert page.request.get(f"{address}/gradio_api/file={remote}").status == 403
    assert not fetched


def test_the_api_stands_beside_it(page, address):
    for path, status in (("models", 200), ("nothing", 404), ("chat/completions", 405)):
        answer = page.request.get(f"{address}/v1/{path}")
        assert answer.status == status and ("error" in answer.json()) == (status != 200)


def test_a_phone_needs_no_scrolling_aside(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
