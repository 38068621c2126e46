"""What runs when: `post_training.py` walks the graph, `kinds.py` has a flow per kind of stage. The work itself is in `tasks`."""

from tasks.environment import prepare

prepare()
