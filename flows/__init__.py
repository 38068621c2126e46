"""What runs when: one flow per stage, and `post_training.py`, which walks the graph. The work itself is in `tasks`.

Each stage's module is also a command, `python -m flows.STAGE`: that is what dvc.yaml runs.
"""

from tasks.environment import prepare

prepare()
