"""A GGUF file behind an OpenAI-compatible endpoint of this machine, by llama.cpp: a teacher, judge or model under evaluation without a hosted one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.extras import require
from pipelines.models.gguf.header import read_header

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Serving:
    """How a model is served. port: 0 takes a free one. slots: requests answered at once. context: tokens of one request with its answer. key: what
    clients must show, None asks for none."""

    port: int = 0
    slots: int = 8
    context: int = 2048
    key: str | None = None


@contextmanager
def served(file: Path, name: str, how: Serving) -> Iterator[str]:
    """The endpoint's URL, which ends in /v1, while the block runs. Only this machine reaches it; the model answers to `name`.

    Raises:
        UserError: xllamacpp is not installed, the file is no GGUF or damaged, llama.cpp does not take it, the port is taken.
    """
    require("xllamacpp", "serving a GGUF file")
    read_header(file)
    xllamacpp: Any = importlib.import_module("xllamacpp")  # its names are found when it is imported
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {name}
    params.hostnames, params.port = [HOST], how.port
    params.api_keys = [how.key] if how.key else []
    params.n_parallel, params.n_ctx = how.slots, how.slots * how.context
    params.ui, params.cors_origins, params.verbosity = False, "", 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise UserError(f"{file}: llama.cpp does not serve it on port {how.port}: {error}") from None
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server
