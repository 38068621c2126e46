"""A run that dies after one of its steps, as a killed process would."""

from pipelines.progress import Journal


class Killed(Exception):
    pass


def die_after(journal: Journal, step: int) -> None:
    """Have `journal` raise Killed when it has logged `step`."""
    log = journal.log

    def dying(now, *args, **kwargs):
        log(now, *args, **kwargs)
        if now == step:
            raise Killed

    journal.log = dying
