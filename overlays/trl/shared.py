"""What the two trainers of TRL have in common as programs of a stage of kind command (docs/COMMAND.md). Runs in TRL's own environment."""

from __future__ import annotations

from typing import Any

import torch
from touchstone_stage import Stage
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

NAMES = {"completions/mean_length": "length", "completions/clipped_ratio": "truncated", "learning_rate": "lr"}
"""TRL's figure -> what it is called in journals here."""


def arguments(stage: Stage, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a trainer's configuration: what params say, over what a stage needs."""
    needed = {"output_dir": stage.resume, "seed": stage.seed, "use_cpu": stage.device == "cpu", "bf16": False, "gradient_checkpointing": False}
    quiet = {"report_to": [], "logging_steps": 1, "disable_tqdm": True, "save_total_limit": 2}
    return {**needed, **quiet, **more, **stage.settings}


def policy(stage: Stage) -> tuple[Any, Any]:
    """The model to start from, in float32, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(stage.model, dtype=torch.float32), AutoTokenizer.from_pretrained(stage.model)


def train(stage: Stage, trainer: Any) -> None:
    """Train from the last checkpoint in resume/, if there is one, and leave the model."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Reports(stage))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(stage.resume))
    trainer.save_model(f"{stage.out}/model")


class Reports(TrainerCallback):
    """Hands on what the trainer logs, step by step."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "train_runtime" not in logs:  # the last of them is of the whole run
            named = {NAMES.get(name, name.replace("/", ".")): value for name, value in logs.items() if isinstance(value, int | float)}
            if "frac_reward_zero_std" in named:
                named["informative_groups"] = 1 - named.pop("frac_reward_zero_std")
            self.stage.log(state.global_step, total=state.max_steps, **{name: value for name, value in named.items() if name != "step"})
