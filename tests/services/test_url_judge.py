"""A judge behind an OpenAI-compatible URL, asked over real HTTP."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from learner.errors import InputError
from learner.records import Message, Prompt
from services.cli.main import app
from services.evaluation.url_judge import KEY_VARIABLE, TRIES, UrlJudge, read_choice
from workers.scorers.base import Comparison


@dataclass
class Server:
    """What a tiny server was asked, and how it replies: with a text, a status, or a whole body."""

    url: str = ""
    reply: Callable[[str, str], str | int | dict[str, Any]] = lambda a, b: "A"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.bodies.append(body)
            told.headers.append({name.lower(): value for name, value in self.headers.items()})
            question = body["messages"][-1]["content"]
            a, b = (re.search(rf"<answer_{x}>\n(.*?)\n</answer_{x}>", question, re.DOTALL) for x in "AB")
            assert a and b and self.path == "/v1/chat/completions"
            said = told.reply(a[1], b[1])
            status = said if isinstance(said, int) else 200
            content = said if isinstance(said, dict) else {"choices": [{"message": {"content": said}}]}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield told
    http.shutdown()
    http.server_close()
    thread.join(10)


def judge(server: Server) -> UrlJudge:
    return UrlJudge(server.url, "judge-1", first_pause_seconds=0.001)


def pairs(*answers: tuple[str, str]) -> list[Comparison]:
    return [Comparison(Prompt.of(f"p{place}", f"Question {place}?"), both) for place, both in enumerate(answers)]


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_both_orders_are_asked_at_temperature_0_and_the_better_answer_wins(server: Server) -> None:
    server.reply = lambda a, b: "A" if len(a) > len(b) else "The better answer is **B**."
    seen: list[tuple[str, int, int]] = []
    verdicts = judge(server).judge(pairs(("longer", "x"), ("x", "longer")), lambda *said: seen.append(said))
    assert verdicts.preferences == (1.0, 0.0)
    assert verdicts.notes == {"judge_answers": 4, "unparsable_judge_answers": 0, "orders_that_disagree": 0}
    assert seen[-1] == ("judging", 4, 4)
    for body in server.bodies:
        assert (body["model"], body["temperature"]) == ("judge-1", 0)
    assert {body["messages"][-1]["content"].count("Question 0?") for body in server.bodies} == {0, 1}


def test_a_judge_that_follows_the_order_makes_ties_that_are_counted(server: Server) -> None:
    server.reply = lambda a, b: "A"
    verdicts = judge(server).judge(pairs(("one", "two"), ("three", "four")), quiet)
    assert verdicts.preferences == (0.5, 0.5) and verdicts.notes["orders_that_disagree"] == 2


def test_replies_that_say_neither_are_counted_and_their_comparisons_have_no_verdict(server: Server) -> None:
    server.reply = lambda a, b: "I cannot say." if a == "odd" else "A" if a == "good" else "B"
    verdicts = judge(server).judge(pairs(("odd", "good"), ("good", "bad")), quiet)
    assert verdicts.preferences == (None, 1.0)
    assert verdicts.notes["unparsable_judge_answers"] == 1


def test_equal_answers_are_a_tie_without_a_question(server: Server) -> None:
    verdicts = judge(server).judge(pairs(("same", "same"), ("good", "bad"), ("same", "same")), quiet)
    assert verdicts.preferences == (0.5, 0.5, 0.5) and len(server.bodies) == 2


def test_the_whole_conversation_is_shown(server: Server) -> None:
    prompt = Prompt(id="t", messages=(Message.of("system", "Be kind."), Message.of("user", "Help {a}!")))
    judge(server).judge([Comparison(prompt, ("x", "{b}"))], quiet)
    assert "system: Be kind.\n\nuser: Help {a}!" in server.bodies[0]["messages"][-1]["content"]


def test_the_key_comes_from_the_environment_and_stands_in_no_message(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(server).judge(pairs(("a", "b")), quiet)
    assert "authorization" not in server.headers[0]
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    server.reply = lambda a, b: 401
    with pytest.raises(InputError, match=f"refuses the key .status 401.; set {KEY_VARIABLE}") as refused:
        judge(server).judge(pairs(("a", "b")), quiet)
    assert server.headers[-1]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(refused.value)


def test_a_busy_server_is_asked_again(server: Server) -> None:
    tries = itertools.count(1)  # both orders are asked at once
    server.reply = lambda a, b: 503 if next(tries) < 4 else "A"
    assert judge(server).judge(pairs(("a", "b")), quiet).preferences == (0.5,)
    assert len(server.bodies) == 5


def test_a_server_that_stays_busy_is_given_up_with_a_sentence(server: Server) -> None:
    server.reply = lambda a, b: 429
    with pytest.raises(InputError, match=f"did not answer in {TRIES} tries .status 429."):
        judge(server).judge(pairs(("a", "b")), quiet)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (404, r"answered with status 404 .*look at --judge-url and --judge-model"),
        ({"data": []}, "does not answer as an OpenAI-compatible server does"),
    ],
)
def test_other_replies_are_said(server: Server, reply: int | dict[str, Any], said: str) -> None:
    server.reply = lambda a, b: reply
    with pytest.raises(InputError, match=said):
        judge(server).judge(pairs(("a", "b")), quiet)


def test_nobody_at_the_url_is_said() -> None:
    with pytest.raises(InputError, match=r"--judge-url: http://127.0.0.1:1/v1 did not answer in 5 tries"):
        UrlJudge("http://127.0.0.1:1/v1", "m", first_pause_seconds=0.001).judge(pairs(("a", "b")), quiet)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://a\x00b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no http or https address"):
        UrlJudge(url, "m")
    with pytest.raises(InputError, match="holds a user or password"):
        UrlJudge("http://me:secret@host/v1", "m")


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "A"),
        (" b\n", "B"),
        ("**B**", "B"),
        ("(a)", "A"),
        ("Answer A", "A"),
        ("Answer: b.", "B"),
        ("[[B]]", "B"),
        ("Both have merits. My final verdict is: [[A]]", "A"),
        ("The better answer is B, because answer A is rude.", "B"),
        ("Answer A is clearer than answer B.", None),
        ("Answer A is better than answer B.", "A"),
        ("B is the better answer.", "B"),
        ("A is worse, so I choose B.", "B"),
        ("Answer A states the fact. Answer B does not.\n\nVerdict: A", "A"),
        ("A short and kind reply wins: B", "B"),
        ("I prefer answer B", "B"),
        ("<think>A seems good. Answer: A</think>B", "B"),
        ("<think>The better answer is A", None),
        ("Neither.", None),
        ("A or B", None),
        ("", None),
        ("Because of its length", None),
        ("Option C", None),
    ],
)
def test_a_choice_is_read_from_what_judges_say(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


def test_the_command_line_asks_the_judge_and_counts_what_it_could_not_read(server: Server, tmp_path: Path) -> None:
    server.reply = lambda a, b: "?" if a == "odd" else "A" if a == "good" else "B"
    for name, outputs in (("one", ("good", "good", "odd")), ("other", ("bad", "good", "bad"))):
        rows = [{"instruction": f"Question {place}?", "output": output} for place, output in enumerate(outputs)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    arguments = ["evaluate", str(tmp_path / "one.json"), str(tmp_path / "other.json"), "--json"]
    asked = [*arguments, "--judge-url", server.url, "--judge-model", "judge-1"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["win_rate"], data["tie_rate"], data["compared"], data["without_verdict"]) == (0.75, 0.5, 2, 1)
    assert data["unparsable_judge_answers"] == 1 and data["judge_answers"] == 4
    assert data["judge"] == {"kind": "url", "name": "judge-1", "version": server.url}
    server.reply = lambda a, b: "?"
    silent = CliRunner().invoke(app, [*asked, "--prompts", str(tmp_path / "one.json"), "--count", "1"])
    assert isinstance(silent.exception, InputError) and "said neither A nor B" in str(silent.exception)
