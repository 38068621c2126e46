"""TRL's GRPOTrainer as a stage: settings of the stage are those of GRPOConfig, rewards are the scores of Touchstone's verifiers."""

from __future__ import annotations

import statistics
from typing import Any

from datasets import Dataset
from shared import arguments, policy, train
from touchstone_stage import Stage
from trl import GRPOConfig, GRPOTrainer

INFRASTRUCTURE = "infrastructure"


def main() -> None:
    stage = Stage()
    model, tokenizer = policy(stage)

    def score(completions: list[Any], completion_ids: list[Any], problem_id: list[str], trainer_state: Any, **_: Any) -> list[float]:
        """The verifiers' scores; what says nothing of a response gets the mean of its group, and so no advantage."""
        texts = [turns[0]["content"] for turns in completions]
        verdicts = stage.score(list(zip(problem_id, texts, strict=True)))
        judged: dict[str, list[float]] = {}
        for problem, verdict in zip(problem_id, verdicts, strict=True):
            judged.setdefault(problem, []).extend([] if verdict["outcome"] == INFRASTRUCTURE else [verdict["score"]])
        means = {problem: statistics.fmean(scores or [0.0]) for problem, scores in judged.items()}
        rewards = [means[p] if v["outcome"] == INFRASTRUCTURE else v["score"] for p, v in zip(problem_id, verdicts, strict=True)]
        ends = ["stop" if int(ids[-1]) == tokenizer.eos_token_id else "length" for ids in completion_ids]
        rows = zip(problem_id, texts, rewards, ends, completion_ids, strict=True)
        stage.keep([
            {"step": trainer_state.global_step + 1, "problem_id": problem, "response": text, "reward": reward, "finish_reason": end,
             "response_ids": [int(token) for token in ids]}
            for problem, text, reward, end, ids in rows
        ])  # fmt: skip
        return rewards

    rows = [{"prompt": row["messages"], "problem_id": row["problem_id"]} for row in stage.rows()]
    config = GRPOConfig(**arguments(stage))
    train(stage, GRPOTrainer(model, score, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer))


if __name__ == "__main__":
    main()
