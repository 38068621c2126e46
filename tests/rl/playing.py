"""A scripted policy at work in an environment, with real tokenizers, verifiers and sandboxes."""

from loops import TOKENIZER

from pipelines.config.common import GenerationSettings
from pipelines.generation import ScriptedGenerator
from pipelines.records import Problem
from pipelines.rl.answering import Answering
from pipelines.rl.clock import Clock
from pipelines.rl.environments import SingleTurn
from pipelines.rl.explore import samples
from pipelines.rl.guidance import none
from pipelines.rl.play import Answer
from pipelines.rl.rewards import Rewards, weighted
from pipelines.rl.rewards.parts import form, verdict
from pipelines.verifiers import VerifierPool

SETTINGS = GenerationSettings(max_new_tokens=64)

PLAIN_TOOLS = {"call": "function", "described": False}


def problem(answer: str = "651", **fields) -> Problem:
    return Problem("p" + answer, "math", f"Three boxes of 217? ({answer})", answer, "integer", "math", **fields)


def groups(script, problems, environment=None, guide=none, explore=samples, count=2, settings=SETTINGS, parts=None, combine=weighted, play=None):
    """What a scripted policy makes of each problem. script(text of all before, number of the draw) -> the turn."""
    generator = ScriptedGenerator(TOKENIZER, settings, lambda request, number: script(TOKENIZER.decode(request.prompt_ids), number))
    with VerifierPool() as pool:
        rewards = Rewards(pool, [verdict, form] if parts is None else parts, combine, 64)
        answering = Answering(generator, rewards, play or Answer(), environment or SingleTurn(), guide, explore)
        tasks = [answering.task(p, place, count, (1, "t")) for place, p in enumerate(problems)]
        return answering.played(tasks, 1, "t", Clock())
