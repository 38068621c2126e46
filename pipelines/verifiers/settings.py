"""What `verifier_args` may say: verifier -> setting -> type. A source of params.yaml is held to it before anything runs.

A verifier reads its settings where it judges; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipelines.config.checking import nearest
from pipelines.records import ROW
from pipelines.verifiers.answers import MATCHES
from pipelines.verifiers.judge import Rubric
from pipelines.verifiers.programs import COMPARISONS
from pipelines.verifiers.similarity import METRICS

Texts = list[str]
SETTINGS: dict[str, dict[str, Any]] = {
    "math": {
        "require_boxed": bool,
        "percent": Literal["value", "ignore"],
        "units": Literal["lenient", "ignore", "strict"],
        "form": Literal["any", "number"],
    },
    "exact": {"accept": Texts, "match": Literal[MATCHES], "normalise": bool},
    "choice": {"options": Annotated[Texts, Field(max_length=26)] | dict[str, str]},
    "regex": {"pattern": str, "flags": Annotated[str, Field(pattern="^[imsxa]*$")], "group": int | str},
    "json": {"match": Literal["equal", "contains"]},
    "logic": {"task": str, "entry": dict[str, Any]},
    "constraints": {"instruction_id_list": Texts, "kwargs": list[dict[str, Any] | None]},
    "similarity": {"metric": Literal[METRICS], "threshold": Annotated[float, Field(ge=0, le=1)]},
    "code": {
        "entry_point": str,
        "tests": list[dict[str, Any]],
        "stdin_tests": list[dict[str, str]] | dict[str, Texts],
        "asserts": Texts,
        "test_imports": Texts,
        "check": str,
        "setup": str,
        "time_limit": Annotated[float, Field(gt=0)],
        "tolerance": Annotated[float, Field(ge=0)],
        "compare": Literal[COMPARISONS],
        "checker": str,
    },
    "judge": {name: field.rebuild_annotation() for name, field in Rubric.model_fields.items()},
}

FOR_ENVIRONMENTS: dict[str, Any] = {ROW: Annotated[int, Field(ge=0)]}
"""What an environment of RL reads there, whatever the verifier."""


def objection(verifier: str, name: str, *values: Any) -> str | None:
    """What is wrong with one setting of `verifier`, None if nothing is; without a value its name alone is judged."""
    known = SETTINGS[verifier] | FOR_ENVIRONMENTS
    if name not in known:
        return f"verifier '{verifier}' has no setting '{name}'{nearest(name, SETTINGS[verifier]) or '; it takes none'}"
    for value in values:
        try:
            TypeAdapter(known[name]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            return f"verifier '{verifier}': setting '{name}': {message[0].lower() + message[1:]}, got {value!r}"
    return None
