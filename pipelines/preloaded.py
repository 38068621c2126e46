"""A process that imports torch and transformers once and forks every stage of a run: `python -m pipelines.preloaded SOCKET STARTER [libraries]`.

Those imports take longer than many a stage has to work. With `libraries` they come in one by one, except while a stage runs that needs
them itself; a stage that is asked for begins at once with what is there. Nothing of this package but this module is imported before
the fork: a stage reads its code from the disk as it lies when it starts, which is what its manifest says.

SOCKET is the number of a stream socket that the starter has left open. A request is a JSON line {arguments, environment, needs_libraries},
sent with the descriptors of the stage's standard output and error, and of a pipe for the answers; arguments are those of `python -m pipelines`.
The answers are lines too: the pid of the stage, which leads a session of its own, and then its exit code, negative for a signal. Stages run side
by side; a request comes once the one before has got its pid. STARTER is the pid of the starter: when it is gone or closes the socket the process
ends, and the stages with it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

LIBRARIES = (
    "torch",
    "pyarrow.parquet",
    "pydantic",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.tokenization_auto",
)
"""What stages with a model import that takes longer than a tenth of a second."""
POLL = 0.02
"""Seconds between looks at the stages that run."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


@dataclass(frozen=True)
class Request:
    """A stage to run, in the process that was forked for it. starter: pid of the process that forked."""

    arguments: list[str]
    environment: dict[str, str]
    descriptors: list[int]
    starter: int


@dataclass(frozen=True)
class Running:
    """A stage that was forked. answers: the pipe that its exit code goes to."""

    answers: int
    needs_libraries: bool


def serve(requests: socket.socket, libraries: Sequence[str] = ()) -> Request | None:
    """Import `libraries` and answer requests until the starter is gone. In the process of a stage: what was asked."""
    waiting, stages = list(libraries), dict[int, Running]()
    while True:
        imports = waiting and not any(stage.needs_libraries for stage in stages.values())
        if select.select([requests], [], [], 0 if imports else POLL if stages else None)[0]:
            text, descriptors = _receive(requests)
            if not text:
                return None
            asked, starter = json.loads(text), os.getpid()
            *outputs, answers = descriptors
            stage = os.fork()
            if not stage:
                os.setsid()
                requests.close()
                os.write(answers, f"{os.getpid()}\n".encode())
                for pipe in (answers, *(other.answers for other in stages.values())):  # they close when this process's starter is gone
                    os.close(pipe)
                return Request(asked["arguments"], asked["environment"], outputs, starter)
            stages[stage] = Running(answers, asked["needs_libraries"])
            for descriptor in outputs:
                os.close(descriptor)
        elif imports:
            with suppress(ImportError, OSError):  # the stage that needs it says so better
                importlib.import_module(waiting.pop(0))
        for stage in list(stages):
            if (ended := os.waitpid(stage, os.WNOHANG))[0]:
                answers = stages.pop(stage).answers
                with suppress(BrokenPipeError):  # nobody waits for it any more
                    os.write(answers, f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
                os.close(answers)


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    """A line and the descriptors that came with it; nothing where the other side has closed."""
    text, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 3)
    while text and not text.endswith(b"\n"):
        more = requests.recv(1 << 16)
        if not more:
            return b"", descriptors
        text += more
    return text, descriptors


def run(request: Request) -> int:
    """Be `python -m pipelines`, as if it had been started so. Returns the exit code."""
    for target, descriptor in enumerate(request.descriptors, start=1):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request.environment)
    if sys.platform == "linux":  # what ps and top call it
        ctypes.CDLL(None).prctl(PR_SET_NAME, request.arguments[0].encode(), 0, 0, 0)
    die_with_parent(request.starter)
    return importlib.import_module("pipelines.__main__").main(request.arguments)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent`, which started it, is gone: kill -9 leaves no orphan. It may be gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which started this one, is gone")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    os.set_inheritable(int(sys.argv[1]), False)
    asked_for = serve(socket.socket(fileno=int(sys.argv[1])), LIBRARIES if "libraries" in sys.argv else ())
    sys.exit(run(asked_for) if asked_for else 0)
