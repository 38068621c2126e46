"""`regex` and `json`: answers of a given form.

regex: the whole answer matches {"pattern": "...", "flags": "ims"} (default: the gold is the pattern). With {"group": 1 or "name"} that part must
equal the gold. A pattern is data and may explode, so it is matched in a worker process that can be killed.
json: the last ```json block, or the whole final text, holds the gold's value; {"match": "contains"} allows further keys. Numbers agree as in `code`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.answers import answer_text, plain
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.programs import same_value

MAX_LENGTH = 200_000
_BLOCK = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


def verify_regex(problem: Problem, text: str) -> Verdict | Job:
    pattern, flags, group = problem.args.get("pattern", problem.answer), problem.args.get("flags", ""), problem.args.get("group")
    if not isinstance(pattern, str) or not set(flags) <= set("imsxa") or not isinstance(group, int | str | None):
        raise ValueError("expected a pattern, flags of i, m, s, x and a, and a group number or name")
    answer = answer_text(text)
    if not answer or len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, "no answer in the final text" if not answer else f"the answer exceeds {MAX_LENGTH} characters")

    def work(engines: Engines) -> Verdict:
        reply = engines.ask("text", {"measure": "regex", "pattern": pattern, "flags": flags, "group": group, "answer": answer})
        if isinstance(reply, Verdict):
            return reply
        if "unusable" in reply:
            return failed(Outcome.INFRASTRUCTURE, f"problem {problem.problem_id}: the pattern cannot be used ({reply['unusable']})")
        same = reply["matched"] and (group is None or plain(str(reply["group"])) == plain(problem.answer))
        return judged(same, answer)

    return Job(answer, work)


def verify_json(problem: Problem, text: str) -> Verdict | Job:
    mode = problem.args.get("match", "equal")
    if mode not in ("equal", "contains"):
        raise ValueError(f"match is 'equal' or 'contains', got {mode!r}")
    gold = json.loads(problem.answer)
    blocks = _BLOCK.findall(text)
    source = blocks[-1] if blocks else text.strip()
    if len(source) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, f"the answer exceeds {MAX_LENGTH} characters")
    try:
        value = json.loads(source)
        return judged(same_value(gold, value) if mode == "equal" else contains(value, gold), source)
    except (ValueError, RecursionError):
        return failed(Outcome.UNPARSABLE, "the answer is no JSON", source[:200])


def contains(value: Any, gold: Any) -> bool:
    """Whether `value` says all that `gold` says: objects may have further keys, everything else is equal."""
    if isinstance(gold, dict):
        return isinstance(value, dict) and all(key in value and contains(value[key], part) for key, part in gold.items())
    return same_value(gold, value)
