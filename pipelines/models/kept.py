"""Weights kept along a training, sparsely: the trajectory that kind extrapolate reads.

Each kept step is a model folder. After step s those steps are there that a distance divides: `every`, doubled as often as it takes to have `most` of
them. So the disk is bounded, the steps are evenly spaced, and which there are follows from s alone: a run that was killed ends with the same ones.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from pipelines.config.common import KeepSettings
from pipelines.models.adapters import plain_weights
from pipelines.models.loading import load_policy, save_policy
from pipelines.store import discard, forget_torn, replacing_folder

STEP = "step-"
"""Beginning of the name of a kept step's folder; its number follows."""


class Kept:
    """The kept steps of one training in `folder`. start: folder of the model that it starts from, whose architecture and tokenizer are kept too.

    writes: false in all but the first of several processes.
    """

    def __init__(self, folder: Path, settings: KeepSettings, start: Path, writes: bool = True) -> None:
        self._folder, self._settings, self._start, self._writes = folder, settings, start, writes
        self._plain: Any = None

    def add(self, step: int, policy: Any) -> None:
        """Keep the weights after `step`, if it is one to keep. Of several processes all must call. Before the resumable checkpoint of the step, so
        that whoever goes on from there finds them."""
        if step % self._settings.every:
            return
        distance = spacing(step, self._settings.every, self._settings.most)
        if step % distance == 0:
            state = plain_weights(policy)
            if self._writes:
                if self._plain is None:
                    self._plain = load_policy(self._start, dtype=self._settings.dtype, chat=False)
                model, tokenizer = self._plain
                model.load_state_dict({name: value.to(getattr(torch, self._settings.dtype)) for name, value in state.items()})
                save_policy(self._folder / f"{STEP}{step:06d}", model, tokenizer)
        if self._writes:
            for number, path in steps(self._folder).items():
                if number % distance:
                    discard(path)

    def cut(self, step: int) -> None:
        """Forget what was kept after `step`: it is about to be done again."""
        if self._writes and self._folder.is_dir():
            forget_torn(self._folder)
            for number, path in steps(self._folder).items():
                if number > step:
                    discard(path)

    def hand_over(self, target: Path) -> int:
        """Put all kept steps into `target`, whole or not at all, as links where the disk has them; an interrupted run continues from the others.
        Returns how many there are."""
        with replacing_folder(target) as folder:
            for path in steps(self._folder).values():
                shutil.copytree(path, folder / path.name, copy_function=_linked)
        return len(steps(target))


def spacing(step: int, every: int, most: int) -> int:
    """Steps between two kept ones after `step`."""
    while step // every > most:
        every *= 2
    return every


def steps(folder: Path) -> dict[int, Path]:
    """Step -> folder of its weights, in rising order."""
    return {int(path.name.removeprefix(STEP)): path for path in sorted(folder.glob(f"{STEP}*"))}


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
