"""Judges: what they are asked, what becomes of what they say, and a server that fails in every way."""

import contextlib
import http.server
import json
import threading

import pytest

from programs import Program, launch
from test_benchmarks import EXPECTED, ROOT, write_answers
from trol_jax.errors import UserError
from trol_jax.evals import judges, score
from trol_jax.evals.benchmarks import BENCHMARKS, hallusionbench, mathvista
from trol_jax.evals.files import Root
from trol_jax.evals.items import Item, Unreadable
from trol_jax.evals.judges import NoJudge, OpenAIJudge, Recorded

SECRET = "sk-very-secret"


class Judge:
    """Says what a function of the prompt says."""

    name = "function"

    def __init__(self, reply):
        self.reply, self.prompts = reply, []

    def replies(self, prompts):
        self.prompts += prompts
        return [self.reply(prompt) for prompt in prompts]

    def account(self):
        return {}


@contextlib.contextmanager
def server(*script):
    """Yields (address, what was received). script: (status, headers, content) each once, then grades of 0.5."""
    received, script = [], list(script)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.path, self.headers.get("Authorization"), body))
            message = {"choices": [{"message": {"content": "0.5"}}], "model": "judge-2"}
            message["usage"] = {"prompt_tokens": 100, "completion_tokens": 2}
            status, headers, content = script.pop(0) if script else (200, {}, json.dumps(message))
            self.send_response(status)
            for each in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(*each)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/v1", received
        finally:
            running.shutdown()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(judges.KEY, SECRET)


def of(url, tmp_path, **options):
    return OpenAIJudge(url, "judge", tmp_path / "judge.jsonl", **{"wait": 0.001, **options})


def scored(name, judge, tmp_path, scoring="standard"):
    write_answers(tmp_path / "answers", name)
    (result,) = score.score(ROOT, [name], tmp_path / "answers", tmp_path / "out", scoring=scoring, judge=judge)
    return result


# ---------------------------------------------------------------------- benchmarks


def test_mm_vet_is_graded_and_what_is_no_grade_is_counted_and_not_averaged(tmp_path):
    count = len(EXPECTED["mm-vet"]["items"])
    grades = iter(["0.5 (half)", "fine", "2", "nan", None])
    judge = Judge(lambda prompt: next(grades))
    result = scored("mm-vet", judge, tmp_path)
    assert len(judge.prompts) == count and all(prompt.endswith(" | ") for prompt in judge.prompts)
    assert " | music <AND> angle | " in judge.prompts[0]
    assert (result["judge"], result["unjudged"], result["n"]) == ("function", 4, count - 4)
    assert result["value"] == 50
    assert {"rec", "gen"} <= {*result["splits"]["capability"]} and "gen, rec" in result["splits"]["capabilities"]
    assert scored("mm-vet", NoJudge(), tmp_path)["value"] is None


def test_llava_is_the_ratio_of_the_means(tmp_path):
    replies = iter(["8 6\nbecause", "10 3", "seven 8", "8, 9", *["10 5"] * 100])
    judge = Judge(lambda prompt: next(replies))
    result = scored("llava", judge, tmp_path)
    more = result["n"] - 3
    assert result["unjudged"] == 1 and result["value"] == pytest.approx(100 * (18 + 5 * more) / (26 + 10 * more))
    assert result["standard_error"] > 0 and {*result["splits"]["category"]} == {"conv", "detail", "complex"}
    context, reference = "Bread line line house", "Sky stone house green seven"
    assert f"[Context]\n{context}" in judge.prompts[0] and f"[Assistant 1]\n{reference}" in judge.prompts[0]


def test_mathverse_asks_twice_and_takes_only_0_and_1(tmp_path):
    found = Judge(lambda prompt: "C" if prompt.endswith("\nAnswer:") else "1")
    trol, standard = (scored("mathverse", found, tmp_path, scoring) for scoring in ("trol", "standard"))
    count = len(EXPECTED["mathverse"]["items"])
    assert len(found.prompts) == 4 * count and trol["value"] == standard["value"] == 100
    assert trol["n"] == count > standard["n"]  # Text Only is left out
    unsure = Judge(lambda prompt: "C" if prompt.endswith("\nAnswer:") else "maybe 1")
    result = scored("mathverse", unsure, tmp_path)
    assert (result["unjudged"], result["value"], len(unsure.prompts)) == (count, None, 2 * count)


def test_mathvista_asks_only_where_rules_find_nothing():
    fields = {"question_type": "multi_choice", "answer_type": "text", "choices": ["red", "blue"], "precision": None}
    item = Item("1", "Which?", (), "blue", fields)
    assert finish(mathvista.talk(item, "(B)")) == ("blue", 1.0)
    for reply, wanted in (("B", ("blue", 1.0)), ("bleu", ("blue", 1.0)), ("none", (None, 0.0))):
        assert finish(mathvista.talk(item, "Hard to say"), reply) == wanted
    with pytest.raises(Unreadable):
        finish(mathvista.talk(item, "Hard to say"), "")
    assert mathvista.distance("kitten", "sitting") == 3


def finish(talk, *replies):
    try:
        next(talk)
        for reply in replies:
            talk.send(reply)
    except StopIteration as end:
        return end.value


def test_hallusionbench_may_be_unclear_without_a_figure(tmp_path):
    result = scored("hallusionbench", Judge(lambda prompt: "Unclear."), tmp_path)
    items = BENCHMARKS["hallusionbench"].read(Root(ROOT, pictures=False))
    open_ones = sum(hallusionbench.without_figure(item) for item in items)
    assert result["value"] == pytest.approx(100 * open_ones / result["n"])
    partly = iter(["?", *["correct"] * 100])
    result = scored("hallusionbench", Judge(lambda prompt: next(partly)), tmp_path)
    assert result["unjudged"] == 1 and result["value"] == result["splits"]["qAcc"]["value"] == 100
    assert scored("hallusionbench", Judge(str), tmp_path, "trol")["judge"] == "none"


def test_mmbench_asks_for_the_letter_where_rules_find_none(tmp_path):
    judge = Judge(lambda prompt: "z")
    result = scored("mmbench_dev", judge, tmp_path)
    before = scored("mmbench_dev", NoJudge(), tmp_path)
    assert len(judge.prompts) == before["unparsed"] > 0 and result["value"] == before["value"]
    assert result["unjudged"] == 0 and result["judge"] == "function"
    test = Judge(lambda prompt: "A")
    assert scored("mmbench", test, tmp_path)["value"] is None and not test.prompts


# ---------------------------------------------------------------------- servers and files


def test_replies_come_in_order_and_are_paid_for_once(tmp_path, key):
    prompts = [f"prompt {number}" for number in range(12)] + ["prompt 3"]
    with server() as (url, received):
        judge = of(url, tmp_path, prices=(2.0, 10.0))
        assert judge.replies(prompts) == ["0.5"] * 13 and len(received) == 12
        assert received[0][:2] == ("/v1/chat/completions", f"Bearer {SECRET}")
        account = judge.account()
        assert account == {
            "tokens_in": 1200,
            "tokens_out": 24,
            "replies": 12,
            "versions": ["judge-2"],
            "dollars": 0.00264,
        }
        assert judge.account()["replies"] == 0
        with open(judge.file, "a") as file:
            file.write('{"prompt": "prom')  # as a kill leaves it
        assert of(url, tmp_path).replies([*prompts, "new"]) == ["0.5"] * 14 and len(received) == 13
        OpenAIJudge(url, "other", judge.file).replies(prompts[:1])
        assert len(received) == 14
    assert SECRET not in judge.file.read_text()
    recorded = Recorded(judge.file)
    assert recorded.replies(["new", "unknown"]) == ["0.5", None] and recorded.name == "recorded (judge, other)"


def test_a_server_that_fails_is_asked_again(tmp_path):
    bad = [(500, {}, "x"), (429, {"Retry-After": "0"}, ""), (200, {}, "no json"), (200, {}, '{"choices": []}')]
    with server(*bad) as (url, received):
        assert of(url, tmp_path, workers=1).replies(["prompt"]) == ["0.5"] and len(received) == 5
        assert received[0][1] is None  # no key, no header
    with pytest.raises(UserError, match=r"failed 2 times, the last with URLError: .*refused.*start again to go on"):
        of(url, tmp_path, tries=2).replies(["another"])


def test_what_one_prompt_is_refused_for_stops_no_other(tmp_path):
    with server((400, {}, "content filter"), (200, {}, '{"choices": [{"message": {"content": null}}]}')) as (url, _):
        judge = of(url, tmp_path, workers=1)
        assert judge.replies(["a", "b", "c"]) == [None, None, "0.5"]
        account = judge.account()
        assert account["refused"] == 1 and "content filter" in account["first_refusal"]
        assert of(url, tmp_path).replies(["a"]) == ["0.5"]


@pytest.mark.parametrize("answer", [(401, {}, f"bad key {SECRET}"), (302, {"Location": "http://127.0.0.1:9/"}, "")])
def test_the_key_is_told_to_no_one(tmp_path, key, answer):
    with server(answer) as (url, received), pytest.raises(UserError, match=f"refuses: {answer[0]}") as error:
        of(url, tmp_path, workers=1).replies(["prompt"])
    assert SECRET not in str(error.value) and len(received) == 1


@pytest.mark.parametrize(("key", "reply"), [("none", "none"), ("0", "0.5"), (2 * SECRET, "a ***")])
def test_a_key_that_is_a_word_changes_no_reply(tmp_path, monkeypatch, key, reply):
    monkeypatch.setenv(judges.KEY, key)
    said = {"choices": [{"message": {"content": reply.replace("***", key)}}], "model": "judge-0"}
    with server((200, {}, json.dumps(said))) as (url, _):
        judge = of(url, tmp_path)
        assert judge.replies(["prompt"]) == of(url, tmp_path).replies(["prompt"]) == [reply]
        assert judge.account()["versions"] == ["judge-0"]


@pytest.mark.parametrize(
    "url", ["http://me:word@host/v1", "http://host/v1?key=1", "http:///v1", "http://[::1/v1", "http://host:port/v1"]
)
def test_addresses_that_hold_keys_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="must be a plain address") as error:
        of(url, tmp_path)
    assert "word" not in str(error.value)


def test_keys_and_flags_that_cannot_be_are_refused(tmp_path, monkeypatch):
    for where, model, prices in (("http://host", None, ()), ("http://host", "m", ["1"]), ("none", "m", ())):
        with pytest.raises(UserError, match="--judge_"):
            judges.make(where, model, tmp_path / "file", prices)
    monkeypatch.setenv(judges.KEY, "a\nb")
    with pytest.raises(UserError, match="holds characters that no key has"):
        judges.make("http://host", "m", tmp_path / "file")
    (tmp_path / "broken").write_text('{"reply": "1"}\n')
    with pytest.raises(UserError, match='broken, row 1: there is no field "prompt"'):
        judges.make(str(tmp_path / "broken"), None, tmp_path / "file")


def test_the_program_judges_by_a_server_and_again_from_its_file(tmp_path):
    write_answers(tmp_path / "answers", "mm-vet")
    flags = ("--benchmarks=mm-vet", f"--root={ROOT}", f"--answers={tmp_path}/answers", f"--output={tmp_path}/out")
    with server() as (url, _):
        how = {judges.KEY: SECRET}
        code, out, err = Program(launch("evaluate"), *flags, f"--judge={url}", "--judge_model=judge", **how).wait()
    assert code == 0 and "50.00" in out and SECRET not in out + err, err
    result = json.loads((tmp_path / "out" / "mm-vet.json").read_text())
    assert result["judge"].startswith("judge (127.0.0.1:") and result["judge_account"]["versions"] == ["judge-2"]
    assert not [file for file in (tmp_path / "out").iterdir() if SECRET in file.read_text()]
    code, out, err = Program(launch("evaluate"), *flags, f"--judge={tmp_path}/out/judge.jsonl").wait()
    assert code == 0 and "50.00" in out, err
