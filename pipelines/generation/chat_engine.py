"""Any OpenAI-compatible endpoint as an engine: problems as chat turns in, text out.

For teachers, judges and the evaluation of a hosted model. Such a server says neither which tokens it sampled nor, of the distribution that it
sampled from, how likely they were: token ids are the text through a tokenizer of ours, and there are no log-probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import seeding
from pipelines.chat import ChatClient, Replies
from pipelines.config.common import GenerationSettings
from pipelines.endpoint import GENERATION_KEY, GENERATION_URL
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation.protocol import Blocking, Progress, Request, Sample


class ChatGenerator(Blocking):
    """replies: a file that keeps what was answered, so that it is not asked again after an interruption."""

    def __init__(self, tokenizer: Any, settings: GenerationSettings, replies: Path | None = None) -> None:
        if not (url := os.environ.get(GENERATION_URL)):
            raise UserError(f"generation.engine server asks the endpoint that {GENERATION_URL} names, which is not set; it must look like http://host:port/v1")
        if not settings.server.model:
            raise UserError("generation.server.model is empty; name the model as the endpoint knows it")
        self.tokenizer = tokenizer
        self.settings = settings
        asked = settings.server
        self._client = ChatClient(
            url, asked.model, os.environ.get(GENERATION_KEY), asked.timeout, asked.retries, concurrency=asked.concurrency,
            replies=replies and Replies(replies), role="generation",
        )  # fmt: skip

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """See `Generator.generate`. The seed goes along; whether it is heeded is up to the server.

        Raises:
            InfrastructureError: a prompt was not answered; what was is kept in the file of replies.
        """
        numbered = [(r, number) for r in requests for number in range(r.first, r.first + r.samples)]
        replies = iter(
            self._client.complete_all(
                [r.messages for r, _ in numbered],
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_new_tokens,
                options=[self._options(r, number) for r, number in numbered],
                progress=progress,
            )
        )
        return [[self._sample(next(replies)) for _ in range(r.samples)] for r in requests]

    def push(self, model: Any, version: int) -> None:
        """Raises: the endpoint's weights are its own."""
        raise ValueError("engine server takes no weights")

    def close(self) -> None:
        """Nothing is held."""

    def _options(self, request: Request, number: int) -> dict[str, Any]:
        """Fields of the request beside the usual ones; those that would change nothing are left out, for not every server knows them."""
        settings = self.settings
        options: dict[str, Any] = {"seed": seeding.key(*request.key, number) >> 33}  # 31 bits, which every server takes
        options |= {"max_tokens": request.limit} if request.limit else {}
        options |= {"temperature": 0.0} if request.greedy else {}
        options |= {"top_p": settings.top_p} if settings.top_p < 1 else {}
        options |= {"top_k": settings.top_k} if settings.top_k else {}
        return options | ({"stop": list(settings.stop)} if settings.stop else {})

    def _sample(self, reply: Any) -> Sample:
        if reply.text is None:
            raise InfrastructureError(f"the endpoint of engine server did not answer: {reply.error}")
        ids = self.tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        return Sample(ids, [], "length" if reply.cut else "stop", reply.text)
