"""A recipe: one row of recipes.yaml with every slot filled in, checked against the functions' signatures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipelines import methods
from pipelines.errors import UserError
from pipelines.rl.environments import ENVIRONMENTS
from pipelines.rl.explore import EXPLORE
from pipelines.rl.guidance import GUIDANCE
from pipelines.rl.objectives import OBJECTIVES
from pipelines.rl.play import PLAY
from pipelines.rl.recompose import CONTINUING, RECOMPOSE
from pipelines.rl.rewards import COMBINE, PARTS
from pipelines.rl.slots import SLOTS, Slot, clip
from pipelines.rl.tasks import TASKS
from pipelines.rl.tensors import SETTABLE, TENSORS, When

Bound = Callable[..., Any]

DATA_SLOTS = {
    "tasks": Slot(TASKS, several=True),
    "play": Slot(PLAY),
    "guidance": Slot(GUIDANCE),
    "explore": Slot(EXPLORE),
    "environment": Slot(ENVIRONMENTS),
    "parts": Slot(PARTS, several=True),
    "combine": Slot(COMBINE),
    "recompose": Slot(RECOMPOSE, several=True),
}
"""Slots of the data half, from a problem to a batch; `SLOTS` are those of the objective half, from a batch to a loss."""
DERIVED = (When.WHOLE, When.ROWS, When.SUM, When.OF_SUMS)
"""Tensors that are functions of others."""
RENAMED = {
    "sapo": "the name of two methods: Soft Adaptive Policy Optimization is the row 'soft_adaptive_po', and the swarm sampling of "
    "'Sharing is Caring' (arXiv 2509.08721) the row 'swarm'"
}
"""Names that rows had, and what became of them."""
PROSE = ("paper", "formula", "fidelity", "assumed", "code_variant")


@dataclass(frozen=True)
class Recipe:
    """A published method as the value of each slot.

    slots: slot -> {name, settings...}, or a tuple of such for slots that hold a list; `inputs` maps the name of a tensor to the
    settings of how it is had. derived: tensor -> its function, of those that are had of others. fidelity: `published`, or `reconstructed`
    with what was `assumed`. code_variant: where the authors' code differs from the paper, the setting for it.
    """

    name: str
    paper: str
    formula: str
    fidelity: str
    assumed: str
    code_variant: str
    slots: Mapping[str, Any]
    single: Mapping[str, Bound] = field(default_factory=dict, compare=False, repr=False)
    lists: Mapping[str, tuple[Bound, ...]] = field(default_factory=dict, compare=False, repr=False)
    derived: Mapping[str, Bound] = field(default_factory=dict, compare=False, repr=False)

    @property
    def sampling(self) -> tuple[str, ...]:
        """Slots of the data half that it says itself: its problems are answered in a way of its own."""
        default = _rows()["default"]
        return tuple(slot for slot in DATA_SLOTS if self.slots[slot] != _checked(slot, default[slot]))

    @property
    def policy_gradient(self) -> bool:
        """Whether the loss is composed of slots; else it is one of objectives/."""
        return self.slots["objective"]["name"] == "policy_gradient"

    @property
    def by_component(self) -> bool:
        """Whether each part of the reward has an advantage and a loss of its own."""
        return "component_weight_K" in self.slots["inputs"]

    @property
    def follows_advantage(self) -> bool:
        """Whether a response all of whose advantages are 0 has no gradient: every clip is homogeneous in them, and nothing else is added."""
        return self.policy_gradient and not (self.by_component or self.lists["regularisers"] or self.lists["auxiliary"])

    @property
    def grouped(self) -> bool:
        """Whether a micro-batch must hold whole groups."""
        objective = OBJECTIVES.get(self.slots["objective"]["name"])
        return objective is not None and objective.whole_groups

    @property
    def per_token(self) -> bool:
        """Whether there is a loss per token."""
        return self.policy_gradient or OBJECTIVES[self.slots["objective"]["name"]].per_token

    @property
    def shrinks(self) -> bool:
        """Whether masked tokens leave the denominators."""
        return self.slots["denominator"]["name"] == "kept"

    @property
    def relative_clip(self) -> tuple[float, float] | None:
        """(low, high) of a clip to [1 - low, 1 + high] beyond which a token has no gradient, if the recipe has such a one."""
        return clip.bounds(self.single["clip"])

    @property
    def corrections(self) -> tuple[Bound, ...]:
        """The mismatch functions that look at the gap alone, not at the others' mean."""
        return tuple(f for f in self.lists["mismatch"] if "mismatch_mean" not in dict(inputs_of(f)))

    @functools.cached_property
    def read(self) -> dict[str, bool]:
        """Tensor -> whether it must be there, over every function that runs for this recipe."""
        skipped = set() if self.policy_gradient else {"anchor", "ratio", "clip"}
        functions = [f for slot, f in self.single.items() if slot not in (*skipped, *DATA_SLOTS, "objective")]
        functions += [] if self.policy_gradient else [self.single["objective"]]
        functions += [f for slot, fs in self.lists.items() if slot not in DATA_SLOTS for f in fs]
        read = _union(functions) | dict.fromkeys(self.slots["inputs"], True)
        if self.lists["mismatch"]:
            read["logp_roll_BT"] = True
        if self.by_component:
            read["component_advantage_BK"] = True
        return _with_what_they_take(read)

    @functools.cached_property
    def before(self) -> frozenset[str]:
        """What is needed before the update: what advantages and statistics of the batch read, and what only a pass before it can give."""
        statistics = [f for name, f in self.derived.items() if TENSORS[name].when is When.WHOLE]
        functions = [*statistics, *(f for slot, fs in self.lists.items() if slot in SLOTS and SLOTS[slot].early for f in fs)]
        functions += [f for slot, f in self.single.items() if slot in SLOTS and SLOTS[slot].early]
        if self.shrinks or "mismatch_mean" in self.needs:
            functions += [*self.lists["mismatch"], *self.lists["token_mask"]]
        early = {name for name, needed in _union(functions).items() if needed}
        if "gap_BT" in early:
            early.add("logp_old_BT")
        if self.shrinks:
            early |= {old for old, declared in TENSORS.items() if declared.when is When.BEFORE and declared.live in early}
        early |= {name for name in self.needs if TENSORS[name].when is When.BEFORE and TENSORS[name].live is None}
        return frozenset(early)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the tensors, of `Batch` and `LIVE`, without which it cannot run."""
        return frozenset(name for name, needed in self.read.items() if needed)

    @property
    def reads_advantage(self) -> bool:
        return self.policy_gradient or "advantage_BT" in self.needs

    def having(self, *when: When) -> tuple[str, ...]:
        """The tensors that the recipe reads and that are had so."""
        return tuple(name for name in TENSORS if name in self.read and TENSORS[name].when in when)

    @property
    def of_critic(self) -> tuple[str, ...]:
        """The tensors that a critic says which was trained beforehand."""
        chosen = (name for name in sorted(self.needs) if name in SETTABLE and "by" in methods.settings_of(SETTABLE[name]))
        return tuple(name for name in chosen if self.setting(name, "by") == "critic")

    @property
    def value_head(self) -> bool:
        """Whether a value head trains beside the policy."""
        return any(TENSORS[name].head for name in self.needs)

    def settings(self, tensor: str) -> dict[str, Any]:
        """All that `setting` says of it."""
        return {name: self.setting(tensor, name) for name in methods.settings_of(SETTABLE[tensor])}

    def setting(self, tensor: str, name: str) -> Any:
        """What the recipe, or its function's default, says of how the tensor is had."""
        return self.slots["inputs"].get(tensor, {}).get(name, methods.settings_of(SETTABLE[tensor])[name].default)


def _with_what_they_take(read: Mapping[str, bool]) -> dict[str, bool]:
    """Tensors with those that they are had of, in turn. Of a whole batch only what must be there is taken."""
    closed: dict[str, bool] = {}
    waiting = dict(read)
    while waiting:
        name, needed = waiting.popitem()
        if name not in TENSORS or (closed.get(name, False) >= needed and name in closed):
            continue
        closed[name] = closed.get(name, False) or needed
        declared = TENSORS[name]
        also = dict.fromkeys(declared.with_, True) | ({declared.held_of: True} if declared.held_of else {})
        if declared.when in DERIVED and (needed or declared.when is not When.WHOLE):
            assert declared.compute is not None
            also |= dict(inputs_of(declared.compute))
        for other, must in also.items():
            waiting[other] = waiting.get(other, False) or must
    return closed


def _union(functions: Iterable[Bound]) -> dict[str, bool]:
    read: dict[str, bool] = {}
    for function in functions:
        for name, needed in inputs_of(function):
            read[name] = read.get(name, False) or needed
    return read


@functools.cache
def inputs_of(function: Bound) -> tuple[tuple[str, bool], ...]:
    """The tensors that a function reads: its positional parameters, and whether each is needed (has no default)."""
    return tuple(
        (name, parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    )


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "recipes.yaml").read_text())


def names() -> list[str]:
    """Every row, in the order of the file."""
    return [name for name in _rows() if name != "default"]


def recipe(name: str, **overrides: Any) -> Recipe:
    """The row called `name`; an override replaces one slot: `recipe("grpo", clip={"name": "ppo", "low": 0.1, "high": 0.1})`.

    Raises:
        UserError: no such row, slot, function or setting; names the nearest.
    """
    rows = _rows()
    if name in RENAMED:
        raise UserError(f"recipe: '{name}' is {RENAMED[name]}")
    row = methods.choose("recipe", {key: value for key, value in rows.items() if key != "default"}, name)
    for slot in (*overrides, *(key for key in row if key not in (*PROSE, "like"))):
        methods.choose(f"recipe '{name}': slot", rows["default"], slot)
    if "like" in row:
        row = {key: value for key, value in rows[row["like"]].items() if key not in PROSE} | row
    filled = {**rows["default"], **{key: value for key, value in row.items() if key not in (*PROSE, "like")}, **overrides}
    slots = {slot: _checked(slot, value) for slot, value in filled.items()}
    families = {**SLOTS, **DATA_SLOTS}
    bare = Recipe(
        name=name,
        paper=row["paper"],
        formula=row["formula"],
        fidelity=row.get("fidelity", "published"),
        assumed=row.get("assumed", ""),
        code_variant=row.get("code_variant", ""),
        slots=slots,
        single={name: _bind(name, slot, slots[name]) for name, slot in families.items() if not slot.several},
        lists={name: tuple(_bind(name, slot, value) for value in slots[name]) for name, slot in families.items() if slot.several},
    )
    for slot in ("mismatch", "token_mask", "token_weight"):
        if slots[slot] and not bare.per_token:
            raise UserError(f"recipe '{name}': slot '{slot}' weighs tokens, and the objective '{slots['objective']['name']}' has no loss per token")
    if "greedy_B" in bare.needs and slots["explore"]["name"] != "greedy_baseline":
        raise UserError(f"recipe '{name}': center 'greedy' needs a greedy answer to each problem; set explore: {{name: greedy_baseline}}")
    if "outcome_logits_BTK" in bare.needs and (other := sorted(bare.needs & {"value_BT", "value_old_BT", "value_logits_BTK"})):
        raise UserError(f"recipe '{name}': its critic says the classes of outcomes, and {other[0]} is of one that says values; leave one of them out")
    if plain := sorted(bare.needs & {"greedy_B", "role_baseline_B"}) if slots["reward"] else []:
        raise UserError(f"recipe '{name}': slot 'reward' changes rewards that are compared with plain ones ({plain[0]}); change `parts` or `combine`")
    signed = any("advantage_BT" in dict(inputs_of(f)) for f in (bare.single["ratio"], *bare.lists["token_mask"]))
    if bare.by_component and signed:
        raise UserError(f"recipe '{name}': its ratio or a token mask goes by the sign of the advantage, and here each part of the reward has its own")
    if "template_form" in (part["name"] for part in slots["parts"]) and slots["guidance"]["name"] != "templates":
        raise UserError(f"recipe '{name}': part 'template_form' is of the templates that guidance 'templates' draws; add it, or leave the part out")
    if slots["play"]["name"] == "partial_states":
        for slot, alone in (("guidance", "none"), ("environment", "single_turn")):
            if slots[slot]["name"] != alone:
                raise UserError(
                    f"recipe '{name}': play 'partial_states' has answers go on from the policy's own, and {slot} '{slots[slot]['name']}' begins them "
                    f"otherwise; set {slot}: {{name: {alone}}}"
                )
    beginnings = [name for name in (change["name"] for change in slots["recompose"]) if RECOMPOSE[name] in CONTINUING]
    if beginnings and slots["environment"]["name"] != "single_turn":
        raise UserError(
            f"recipe '{name}': recompose '{beginnings[0]}' has answers of one turn go on, and those of environment "
            f"'{slots['environment']['name']}' may have several; set environment: {{name: single_turn}}"
        )
    for make in bare.lists["tasks"]:
        make()  # a sampler refuses settings that do not go together
    for tensor, settings in slots["inputs"].items():
        methods.bind("inputs", SETTABLE, tensor, settings)
    of_others = [name for name in bare.having(*DERIVED) if bare.read[name] or TENSORS[name].when is not When.WHOLE]
    functions = {name: TENSORS[name].compute for name in of_others}
    return replace(bare, derived={name: methods.bind("inputs", functions, name, slots["inputs"].get(name)) for name in of_others})  # type: ignore[arg-type]


def _checked(slot: str, value: Any) -> Any:
    if slot == "inputs":
        if not isinstance(value, Mapping):
            raise UserError(f"recipe slot 'inputs': expected a mapping from tensors to settings, such as {{low_BT: {{share: 0.01}}}}, got {value!r}")
        return dict(value)
    if not {**SLOTS, **DATA_SLOTS}[slot].several:
        return _named(slot, value)
    values = [value] if isinstance(value, Mapping) else value
    if not isinstance(values, (list, tuple)):
        raise UserError(f"recipe slot '{slot}': expected a list of mappings with a name each, got {value!r}")
    return tuple(_named(slot, one) for one in values)


def _named(slot: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or "name" not in value:
        raise UserError(f"recipe slot '{slot}': expected a mapping with a name, such as {{name: none}}, got {value!r}")
    return value


def _bind(name: str, slot: Slot, value: Mapping[str, Any]) -> Bound:
    return methods.bind(name, slot.functions, value["name"], {key: setting for key, setting in value.items() if key != "name"})
