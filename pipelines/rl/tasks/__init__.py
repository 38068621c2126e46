"""Slot `tasks`: which problems are drawn. A sampler is a class whose keyword-only parameters are its settings; a run makes one of it and calls it
as (problems, draw) -> problems. What it remembers it builds from the history, so nothing of it needs a checkpoint."""

from pipelines.rl.tasks.bots import Bots
from pipelines.rl.tasks.cyclic import Cyclic
from pipelines.rl.tasks.draw import Choose, Draw, draw
from pipelines.rl.tasks.drop_high_pass import DropHighPass
from pipelines.rl.tasks.rehearsal import Rehearsal
from pipelines.rl.tasks.rlcs import Rlcs
from pipelines.rl.tasks.rule_reasoner import RuleReasoner
from pipelines.rl.tasks.staged import Staged
from pipelines.rl.tasks.success_pairs import SuccessPairs
from pipelines.rl.tasks.variants import Variants

__all__ = [
    "TASKS", "Bots", "Choose", "Cyclic", "Draw", "DropHighPass", "Rehearsal", "Rlcs", "RuleReasoner", "Staged", "SuccessPairs", "Variants", "draw",
]  # fmt: skip

TASKS = {
    "drop_high_pass": DropHighPass,
    "bots": Bots,
    "rule_reasoner": RuleReasoner,
    "rlcs": Rlcs,
    "success_pairs": SuccessPairs,
    "staged": Staged,
    "cyclic": Cyclic,
    "variants": Variants,
    "rehearsal": Rehearsal,
}
