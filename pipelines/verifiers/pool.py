"""Judging many responses: a pool that long-lived callers hold, with a cache of verdicts and counts of outcomes.

What is decided at once is decided in the calling thread. Other work is deduplicated by (verifier version, problem, the part of the
response that is judged), given to `workers` threads, and each thread holds one worker process or one sandbox at a time. Verdicts do not depend on the
thread, the batch or the order. An `infrastructure` verdict says nothing about the response and is never cached.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from threading import Lock
from types import TracebackType
from typing import Self

from pipelines.lineage.code import code_sha256
from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.answers import verify_exact, verify_logic, whole_output
from pipelines.verifiers.choice import verify_choice
from pipelines.verifiers.constraints import verify_constraints
from pipelines.verifiers.judge import verify_judge
from pipelines.verifiers.judgement import Job, Limits, Verifier, failed
from pipelines.verifiers.mathematics import verify_math
from pipelines.verifiers.programs import verify_code
from pipelines.verifiers.sandbox import require_sandbox
from pipelines.verifiers.similarity import verify_similarity
from pipelines.verifiers.structured import verify_json, verify_regex
from pipelines.verifiers.text import final_text
from pipelines.verifiers.workers import Workers

VERIFIERS: dict[str, Verifier] = {
    "math": verify_math,
    "exact": verify_exact,
    "choice": verify_choice,
    "regex": verify_regex,
    "json": verify_json,
    "logic": verify_logic,
    "constraints": verify_constraints,
    "similarity": verify_similarity,
    "code": verify_code,
    "judge": verify_judge,
}
"""Name in `Problem.verifier` -> verifier."""
SANDBOXED = ("code", "logic")
"""Verifiers that run what a model or a dataset wrote."""
DEFAULT_WORKERS = max(1, min(8, os.cpu_count() or 1))


class VerdictCache:
    """The last `size` verdicts. Two threads that ask for one key at the same time share one judgement."""

    def __init__(self, size: int = 200_000) -> None:
        self._size, self._lock = size, Lock()
        self._verdicts: OrderedDict[bytes, Future[Verdict]] = OrderedDict()

    def judge(self, key: bytes, work: Callable[[], Verdict]) -> Verdict:
        with self._lock:
            known = self._verdicts.get(key)
            future = known or self._verdicts.setdefault(key, Future())
            while len(self._verdicts) > self._size:
                self._verdicts.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            verdict = work()
        except BaseException as error:  # passed on, here and to those who wait for this key
            self._forget(key)
            future.set_exception(error)
            raise
        if verdict.outcome is Outcome.INFRASTRUCTURE:
            self._forget(key)
        future.set_result(verdict)
        return verdict

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._verdicts.pop(key, None)


@functools.cache
def version() -> str:
    """Digest of the code and the libraries that judge: verdicts of another version are other verdicts."""
    return code_sha256(__name__)


def cache_key(problem: Problem, subject: str) -> bytes:
    """(verifier version, problem as far as its verifier sees it, the part of the response that is judged)."""
    parts = (version(), problem.verifier, problem.verifier_args, problem.answer, subject)
    return blake2b("\0".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def begin(problem: Problem, response: str, judge: Verifier | None = None) -> Verdict | Job:
    """What the problem's verifier says of the final text, or of all of the response where its settings ask for it. judge: what stands in for
    verifier `judge`, and reads all of the response."""
    verifier = VERIFIERS.get(problem.verifier)
    if verifier is None:
        return failed(Outcome.INFRASTRUCTURE, f"problem {problem.problem_id}: unknown verifier {problem.verifier!r}, known are {sorted(VERIFIERS)}")
    try:
        if judge and problem.verifier == "judge":
            return judge(problem, response)
        text = response if whole_output(problem) else final_text(response)
        if text is None:
            return failed(Outcome.UNPARSABLE, "<think> is never closed: there is no final text")
        return verifier(problem, text)
    except ValueError as error:
        return failed(Outcome.INFRASTRUCTURE, f"problem {problem.problem_id}: verifier_args cannot be used ({error})")


def _timed(job: Job, workers: Workers) -> Verdict:
    started = time.monotonic()
    return replace(job.work(workers), seconds=time.monotonic() - started)


class VerifierPool:
    """Worker processes, verdict cache and `counts` of outcomes; a context manager. Safe to share between threads. judge: see `begin`."""

    def __init__(
        self,
        workers: int = DEFAULT_WORKERS,
        *,
        limits: Limits | None = None,
        cache: VerdictCache | None = None,
        judge: Verifier | None = None,
    ) -> None:
        self._judge = judge
        self.limits, self.counts, self.cache = limits or Limits(), Counter[str](), cache or VerdictCache()
        self._workers = Workers(workers, self.limits)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verifier")
        self._lock = Lock()

    def verify(self, problem: Problem, response: str) -> Verdict:
        return self.verify_batch([(problem, response)])[0]

    def submit(self, problem: Problem, response: str) -> Future[Verdict]:
        """The verdict when it is there, while the caller does something else."""
        first = begin(problem, response, self._judge)
        if isinstance(first, Verdict):
            verdict: Future[Verdict] = Future()
            verdict.set_result(first)
        else:
            work = functools.partial(_timed, first, self._workers)
            verdict = self._threads.submit(self.cache.judge, cache_key(problem, first.subject), work)
        verdict.add_done_callback(self._count)
        return verdict

    def _count(self, verdict: Future[Verdict]) -> None:
        if not verdict.cancelled() and verdict.exception() is None:
            with self._lock:
                self.counts[verdict.result().outcome.value] += 1

    def verify_batch(self, pairs: Sequence[tuple[Problem, str]], cache: VerdictCache | None = None) -> list[Verdict]:
        """One verdict per (problem, response), in order. `cache` replaces the pool's own."""
        judge = (cache or self.cache).judge
        verdicts: list[Verdict | Future[Verdict]] = []
        running: dict[bytes, Future[Verdict]] = {}
        for problem, response in pairs:
            first = begin(problem, response, self._judge)
            if isinstance(first, Verdict):
                verdicts.append(first)
                continue
            key = cache_key(problem, first.subject)
            if key not in running:
                running[key] = self._threads.submit(judge, key, functools.partial(_timed, first, self._workers))
            verdicts.append(running[key])
        done = [verdict if isinstance(verdict, Verdict) else verdict.result() for verdict in verdicts]
        with self._lock:
            self.counts.update(verdict.outcome.value for verdict in done)
        return done

    def close(self) -> None:
        """Kill all workers, wait for sandboxes under way (bounded by their limits). The pool cannot be used afterwards."""
        self._workers.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def require_sandbox_for(problems: Iterable[Problem]) -> None:
    """
    Raises:
        InfrastructureError: one of the problems needs the sandbox, and this machine has none that works.
    """
    if any(problem.verifier in SANDBOXED for problem in problems):
        require_sandbox()


@functools.cache
def shared_pool(workers: int, limits: Limits | None) -> VerifierPool:
    """The process-wide pool behind `verify` and `verify_batch`, closed at exit. A forked child gets its own."""
    pool = VerifierPool(workers, limits=limits)
    atexit.register(pool.close)
    return pool


os.register_at_fork(after_in_child=shared_pool.cache_clear)


def verify(problem: Problem, response: str, *, limits: Limits | None = None) -> Verdict:
    """Judge one response. Symbolic and logic engines start on first use (a second or two) and then stay."""
    return shared_pool(DEFAULT_WORKERS, limits).verify(problem, response)


def verify_batch(pairs: Sequence[tuple[Problem, str]], workers: int = DEFAULT_WORKERS, cache: VerdictCache | None = None) -> list[Verdict]:
    """Judge many: the verdicts of `verify`, in the order given. Without `cache` the verdicts of earlier calls are remembered."""
    return shared_pool(workers, None).verify_batch(pairs, cache)
