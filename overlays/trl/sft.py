"""TRL's SFTTrainer as a stage: settings of the stage are those of SFTConfig, rows are worked solutions, the loss is of the completion alone."""

from __future__ import annotations

from datasets import Dataset
from shared import arguments, policy, train
from touchstone_stage import Stage
from trl import SFTConfig, SFTTrainer


def main() -> None:
    stage = Stage()
    model, tokenizer = policy(stage)
    worked = [row for row in stage.rows() if row["completion"] is not None]
    rows = [{"prompt": row["messages"], "completion": [{"role": "assistant", "content": row["completion"]}]} for row in worked]
    config = SFTConfig(**arguments(stage, completion_only_loss=True))
    train(stage, SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer))


if __name__ == "__main__":
    main()
