"""The same as vllm_engine.py over HTTP: a `vllm serve` that is started here, or the one that TOUCHSTONE_GENERATION_URL names.

Prompts go to /inference/v1/generate, whose answers bear token ids and the label of the weights that sampled them; the routes of
VLLM_SERVER_DEV_MODE pause it, replace its weights and empty its prefix cache. A server at an address must run with `FLAGS`, hold a model of
the same shape, and see the folder that weights are written to.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.config.common import GenerationSettings
from pipelines.endpoint import GENERATION_KEY, Endpoint, Failed
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation.protocol import Progress
from pipelines.generation.vllm_engine import QUIET, UNFINISHED, WHOLE, Answer, engine_arguments, require_vllm, sleeps
from pipelines.guard import Guard

FLAGS = "VLLM_SERVER_DEV_MODE=1 in its environment, --enable-scale-out and --logprobs-mode processed_logprobs"
LARGEST = 1 << 28
"""Bytes of an answer; a token of a response takes some 200."""
SLOWEST_START = 1800.0
"""Seconds after which a server that has neither answered nor ended is given up."""


class ServedVllm:
    """vLLM behind HTTP."""

    def __init__(self, endpoint: Endpoint, settings: GenerationSettings, server: Server | None = None, sleeps: bool = False) -> None:
        self._endpoint, self._server, self._settings, self._sleeps, self._asleep = endpoint, server, settings, sleeps, False
        mode = self._ask("/server_info?config_format=json", method="GET")["vllm_config"]["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise UserError(f"the vLLM server at {endpoint.url} gives {mode}, not those of the distribution sampled from; it must run with {FLAGS}")
        self.context = self._ask("/v1/models", method="GET")["data"][0]["max_model_len"]

    @classmethod
    def at(cls, url: str, settings: GenerationSettings) -> ServedVllm:
        """A server that runs already."""
        return cls(_endpoint(url.rstrip("/").removesuffix("/v1"), os.environ.get(GENERATION_KEY), settings), settings)

    @classmethod
    def started(cls, model: Path | str, settings: GenerationSettings, device: str) -> ServedVllm:
        """A server of our own, on loopback."""
        server = Server(model, settings, device)
        try:
            return cls(_endpoint(server.url, server.key, settings), settings, server, sleeps(settings, device))
        except BaseException:
            server.close()
            raise

    def answer(self, prompts: Sequence[tuple[int, ...]], sampling: Sequence[dict[str, Any]], progress: Progress | None) -> list[Answer]:
        def one(prompt: tuple[int, ...], given: dict[str, Any]) -> Answer:
            return self._ask("/inference/v1/generate", {"token_ids": prompt, "sampling_params": given}, read=_answer)

        self._wake()
        threads = ThreadPoolExecutor(self._settings.batch_size, thread_name_prefix="vllm")
        answers = []
        try:
            for answer in threads.map(one, prompts, sampling):
                answers.append(answer)
                if progress:
                    progress(len(answers), len(prompts))
        finally:  # all are done, or this was interrupted and nobody waits for the rest
            threads.shutdown(wait=False, cancel_futures=True)
        if self._sleeps:
            self._ask("/sleep?level=1")
            self._asleep = True
        return answers

    def update(self, folder: Path, label: str) -> None:
        self._wake()
        self._ask("/pause?mode=wait")
        try:
            self.relabel(UNFINISHED)
            self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})
            if not self._ask("/reset_prefix_cache")["success"]:
                raise InfrastructureError(f"the vLLM server at {self._endpoint.url} did not empty its prefix cache after an update of the weights")
            self.relabel(label)
        finally:
            self._ask("/resume")

    def relabel(self, label: str) -> None:
        self._ask("/update_weight_version", {"new_version": label})

    def close(self) -> None:
        if self._server:
            self._server.close()

    def _wake(self) -> None:
        if self._asleep:
            self._ask("/wake_up")
            self._asleep = False

    def _ask(self, path: str, body: dict[str, Any] | None = None, read: Any = json.loads, method: str = "POST") -> Any:
        try:
            return self._endpoint.ask(path, body, read, method)
        except Failed as failure:
            if self._server is None:
                raise InfrastructureError(f"the vLLM server at {self._endpoint.url}: {failure} on {path}; it must run with {FLAGS}") from None
            raise InfrastructureError(f"the vLLM server: {failure} on {path}{self._server.last_words()}") from None


class Server:
    """A process `vllm serve`, with all that it starts."""

    def __init__(self, model: Path | str, settings: GenerationSettings, device: str) -> None:
        require_vllm(settings.engine)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.key = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        # The module behind `vllm serve`: that command looks for a distribution named vllm, and the build for CPUs has another name.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--enable-scale-out", "--disable-uvicorn-access-log", *_options(engine_arguments(settings, device))]
        self._guard = Guard()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**QUIET, **os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": self.key, **self._guard.environment}
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Until it answers."""
        health, deadline = Endpoint(self.url, timeout=5.0, retries=0), time.monotonic() + SLOWEST_START
        while True:
            try:
                health.ask("/health", None, len, "GET")
                return
            except Failed as failure:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise InfrastructureError(f"the vLLM server did not start: {failure}{self.last_words()}") from None
                time.sleep(0.2)

    def last_words(self) -> str:
        """For an error message: whether it has ended, and with what error."""
        if self._process.poll() is None:
            return ""
        self._log.seek(0)
        said = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        error = next((line for line in reversed(said) if "Error:" in line), said[-1] if said else "")
        return f"; it ended with code {self._process.returncode}: {error}"

    def close(self) -> None:
        """End it and all that it started."""
        self._guard.close()
        self._process.wait()
        self._log.close()


def _endpoint(url: str, key: str | None, settings: GenerationSettings) -> Endpoint:
    return Endpoint(url, key, settings.server.timeout, settings.server.retries, largest=LARGEST)


def _options(arguments: dict[str, Any]) -> list[str]:
    """EngineArgs as options of the command line."""
    options = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        options += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return options


def _answer(raw: bytes) -> Answer:
    try:
        choice = json.loads(raw)["choices"][0]
        ids, content = choice["token_ids"], choice["logprobs"]["content"]
        labels = tuple(span["version"] for span in choice["weight_versions"])
        answer = Answer(ids, [float(entry["logprob"]) for entry in content], choice["finish_reason"], labels)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise Failed("the answer holds no sampled tokens", transient=True) from None
    if answer.finish_reason not in WHOLE or [entry["token_id"] for entry in content] != ids:
        raise Failed(f"the response was broken off ({answer.finish_reason})", transient=True)
    return answer
