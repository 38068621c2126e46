"""`similarity`: how near a text is to the gold, for translations and patches. The score is the similarity in [0, 1].

verifier_args {"metric": "chrf" | "bleu" | "ter" | "patch" | "labels", "threshold": number}. chrf, bleu and ter are sacrebleu's sentence scores (ter
as 1 - TER). patch is SWE-RL's reward (arXiv 2502.18449): difflib's ratio to the gold patch, read from the last ```diff block where there is one.
labels is the intersection over union of two sets of labels, which commas, semicolons or lines part (Curr-ReFT, arXiv 2503.07065). Correct means at
least the threshold, 0.5 for texts and 1 for patches and labels: a patch that is wrong in one line scores .9, and is wrong. The other measures run in
a worker process: they are quadratic, and the text is the model's.
"""

from __future__ import annotations

import re

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.answers import answer_text
from pipelines.verifiers.judgement import Engines, Job, failed

METRICS = {"chrf": 0.5, "bleu": 0.5, "ter": 0.5, "patch": 1.0, "labels": 1.0}
"""Measure -> the score from which on a response is correct, unless `threshold` says otherwise."""
MAX_LENGTH = 50_000
_DIFF = re.compile(r"```(?:diff|patch)[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_BETWEEN = re.compile(r"[,;\n]")


def verify_similarity(problem: Problem, text: str) -> Verdict | Job:
    metric = problem.args.get("metric", "chrf")
    threshold = problem.args.get("threshold", METRICS.get(metric))
    if metric not in METRICS or isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"expected a metric of {', '.join(METRICS)} and a threshold in [0, 1], got {metric!r} and {threshold!r}")
    answer, gold = (_patch(text), _patch(problem.answer)) if metric == "patch" else (answer_text(text), problem.answer)
    if not answer or len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, "no answer in the final text" if not answer else f"the answer exceeds {MAX_LENGTH} characters")

    if metric == "labels":
        given, wanted = _labels(answer), _labels(gold)
        return _scored(len(given & wanted) / max(len(given | wanted), 1), metric, threshold, answer)

    def work(engines: Engines) -> Verdict:
        reply = engines.ask("text" if metric == "patch" else "similarity", {"measure": metric, "gold": gold, "answer": answer})
        if isinstance(reply, Verdict):
            return reply
        return _scored(float(reply["score"]), metric, threshold, answer)

    return Job(answer, work)


def _scored(score: float, metric: str, threshold: float, answer: str) -> Verdict:
    return Verdict(Outcome.CORRECT if score >= threshold else Outcome.WRONG, score, answer, f"{metric} {score:.3f}")


def _labels(text: str) -> frozenset[str]:
    """The labels that a text lists, without the braces of a set round them; case and spaces do not matter."""
    listed = text.strip().removeprefix("\\").strip("{}[]() ").removesuffix("\\")
    return frozenset(label for piece in _BETWEEN.split(listed) if (label := " ".join(piece.split()).casefold()))


def _patch(text: str) -> str:
    """The last fenced patch, else the answer, without empty lines round it and the line ends of another system."""
    text = text.replace("\r\n", "\n")
    blocks = _DIFF.findall(text)
    return (blocks[-1] if blocks else answer_text(text) or "").strip("\n")
