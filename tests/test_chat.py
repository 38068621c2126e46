"""The chat client against a real server: bounded, patient with what passes, silent about the key."""

import time

import pytest
from chat_endpoint import Answer, serve

from pipelines.chat import ChatClient, Reply
from pipelines.errors import UserError

ASK = [{"role": "user", "content": "hello"}]


def client(url: str, **settings: object) -> ChatClient:
    return ChatClient(url, "some-model", **({"timeout": 5.0, "retries": 2, "pause": 0.01} | settings))  # type: ignore[arg-type]


def ask(chat: ChatClient) -> Reply:
    return chat.complete(ASK, temperature=0.3, max_tokens=17)


def test_request_has_model_messages_settings_and_key() -> None:
    with serve(lambda prompt, number: Answer(f"you said {prompt}")) as endpoint:
        assert ask(client(endpoint.url + "/", key="secret")) == Reply("you said hello")
    assert endpoint.requests == [{"model": "some-model", "messages": ASK, "temperature": 0.3, "max_tokens": 17, "path": "/v1/chat/completions"}]
    assert endpoint.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    "trouble", [Answer(status=500), Answer(status=429, headers={"Retry-After": "0"}), Answer(b"<html>"), Answer(b'{"choices": []}')]
)
def test_what_may_pass_is_tried_again(trouble: Answer) -> None:
    with serve(lambda prompt, number: trouble if number < 3 else Answer("ok")) as endpoint:
        assert ask(client(endpoint.url)) == Reply("ok")
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "tries", "error"),
    [
        (Answer(status=500), 3, "HTTP 500 (3 tries)"),
        (Answer(b"garbage"), 3, "the answer is no chat completion (3 tries)"),
        (Answer(b'{"choices": [{"message": {"content": null}}]}'), 3, "the completion holds no text (3 tries)"),
        (Answer(status=401), 1, "HTTP 401"),
        (Answer(b"x" * (9 << 20)), 1, "answer larger than 8388608 bytes"),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1/v1"}), 1, "HTTP 302"),
        (Answer("short", headers={"Content-Length": "1000"}), 3, "broken off: IncompleteRead (3 tries)"),
    ],
)
def test_what_stays_broken_is_a_reason(trouble: Answer, tries: int, error: str) -> None:
    with serve(lambda prompt, number: trouble) as endpoint:
        assert ask(client(endpoint.url, key="secret", timeout=1.0)) == Reply(None, error)
    assert len(endpoint.requests) == tries


@pytest.mark.parametrize("slow", [Answer("late", delay=1.0), Answer("drop by drop, each of them in time", trickle=0.1)])
def test_a_slow_answer_ends_at_the_deadline(slow: Answer) -> None:
    with serve(lambda prompt, number: slow) as endpoint:
        started = time.monotonic()
        assert ask(client(endpoint.url, timeout=0.3, retries=1)) == Reply(None, "no answer within 0.3 s (2 tries)")
        assert time.monotonic() - started < 1.5


def test_nobody_listening() -> None:
    with serve(lambda prompt, number: Answer("ok")) as endpoint:
        pass
    reply = ask(client(endpoint.url))
    assert reply.text is None and reply.error.startswith("cannot be reached: ") and reply.error.endswith("(3 tries)")


def test_many_keep_their_order_and_the_limit() -> None:
    with serve(lambda prompt, number: Answer(prompt, delay=0.05)) as endpoint:
        chat = client(endpoint.url, concurrency=3)
        replies = chat.complete_all([[{"role": "user", "content": str(i)}] for i in range(12)], temperature=0, max_tokens=1)
    assert [reply.text for reply in replies] == [str(i) for i in range(12)]
    assert 1 < endpoint.most_at_once <= 3


def test_key_is_in_no_representation_and_addresses_are_checked() -> None:
    assert "secret" not in repr(client("http://localhost:1/v1", key="secret"))
    for url in ("localhost:8000/v1", "file:///etc/passwd", "http://", "http://user:secret@host/v1"):
        with pytest.raises(UserError) as caught:
            client(url)
        assert "secret" not in str(caught.value)
