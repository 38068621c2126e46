"""Our verifiers over HTTP on loopback, for the outside program of one stage.

POST URL/score {"answers": [{"problem_id": ..., "response": ...}, ...]} -> {"verdicts": [{"outcome", "score", "extracted", "detail"}, ...]}, in order;
errors are {"error": sentence}. The address holds a token that nobody can guess, and leads nowhere once the stage is over. Problems are those of the
stage's rows: what is asked about another is refused.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipelines import loopback
from pipelines.records import Problem
from pipelines.verifiers import VerifierPool

ANSWERS = 4096
"""Of one request."""
JUDGED = 4
"""Requests that are judged at once; others wait."""


@contextmanager
def serving(problems: Mapping[str, Problem], pool: VerifierPool) -> Iterator[str]:
    """The address, while the block lasts."""
    server = _Server(problems, pool)
    port = server.start()
    try:
        yield f"http://{loopback.HOST}:{port}/{server.token}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(loopback.Server):
    def __init__(self, problems: Mapping[str, Problem], pool: VerifierPool) -> None:
        super().__init__(_Handler)
        self.problems, self.pool = problems, pool
        self.token = secrets.token_urlsafe(24)
        self.places = threading.BoundedSemaphore(JUDGED)


class _Handler(loopback.Handler):
    server: _Server

    def do_GET(self) -> None:
        self.json(404, {"error": "there is no such address; POST to .../score"})

    def do_POST(self) -> None:
        token, rest = self.address()
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or rest != "score":
            return self.json(404, {"error": "there is no such address"})
        try:
            pairs = self._pairs(self.body())
        except loopback.Refused as refused:
            return self.json(refused.status, {"error": str(refused)})
        with self.server.places:
            verdicts = self.server.pool.verify_batch(pairs)
        told = [{"outcome": v.outcome.value, "score": v.score, "extracted": v.extracted, "detail": v.detail} for v in verdicts]
        return self.json(200, {"verdicts": told})

    def _pairs(self, body: Mapping[str, Any]) -> list[tuple[Problem, str]]:
        answers = body.get("answers")
        if not isinstance(answers, list) or len(answers) > ANSWERS:
            raise loopback.Refused(400, f"expected `answers`, a list of at most {ANSWERS}")
        pairs = []
        for place, answer in enumerate(answers):
            wanted = answer if isinstance(answer, dict) else {}
            if not isinstance(wanted.get("problem_id"), str) or not isinstance(wanted.get("response"), str):
                raise loopback.Refused(400, f"answers[{place}]: expected {{problem_id, response}}, both text")
            if wanted["problem_id"] not in self.server.problems:
                raise loopback.Refused(404, f"answers[{place}]: no row of this stage is problem {wanted['problem_id']!r}")
            pairs.append((self.server.problems[wanted["problem_id"]], wanted["response"]))
        return pairs
