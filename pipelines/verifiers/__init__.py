"""Verifiers: (problem, response) -> Verdict, killable and bounded, with what is no fault of the response kept apart.

    from pipelines.verifiers import VerifierPool, verify
    verify(problem, response)                            one response
    with VerifierPool() as pool: pool.verify_batch(pairs)    many, with a cache and counts of outcomes

text.py         which part of a response counts          notation.py     one way of writing mathematics
decorations.py  LaTeX that says nothing                   arithmetic.py   exact comparison without sympy
shapes.py       tuples, sets, intervals, records, ...     reading.py      from a text to its shape
conditions.py   sets of reals by a condition              statements.py   values with names, sides of an equality
estimate.py     about how much a constant is              hedges.py       responses that state several answers
mathematics.py  `math`                                    choice.py       `choice`
answers.py      `exact`, `logic`                          assignments.py  `logic` without a task: knights and knaves
structured.py   `regex`, `json`                           constraints.py  `constraints`, by the names of IFEval
similarity.py   `similarity`                              judge.py        `judge`
programs.py     `code`                                    sandbox.py      runs programs; harness.py inside, interpreter.py is what it runs on
isolation.py    the bubblewrap command, what it enforces  seccomp.py      system calls that are denied
memory.py       what a sandbox holds, from outside        cgroups.py      a cgroup for each, where one can be made
workers.py      processes that can be killed              engine.py       what they run
pool.py         VERIFIERS, batches, cache                 audit.py        every gold judged by its own verifier
voting.py       answers in parties of equal value          judgement.py    Limits, Job, the shape of a verifier
confidence.py   the confidence that a response states

A verifier is a function (problem, final text) -> Verdict | Job and a row in `pool.VERIFIERS`.
"""

from pipelines.verifiers.audit import audit_batch, gold_response
from pipelines.verifiers.isolation import enforced
from pipelines.verifiers.judgement import Limits
from pipelines.verifiers.pool import VERIFIERS, VerdictCache, VerifierPool, require_sandbox_for, verify, verify_batch
from pipelines.verifiers.sandbox import ProgramLimits, probe
from pipelines.verifiers.text import final_text

__all__ = [
    "VERIFIERS",
    "Limits",
    "ProgramLimits",
    "VerdictCache",
    "VerifierPool",
    "audit_batch",
    "enforced",
    "final_text",
    "gold_response",
    "probe",
    "require_sandbox_for",
    "verify",
    "verify_batch",
]
