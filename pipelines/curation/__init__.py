"""From raw rows to rows worth training on, every missing one with a reason.

run.py has the steps by name and runs them; steps.py says what a step is. One module per step: normalise, filters (with signals),
deduplication, near_duplicates, semantic_duplicates, decontamination, answers, judging, selection. words.py and content.py compare texts;
tables.py and engines.py move rows; card.py is the data card. difficulty.py is about pass rates and needs none of the others.
"""
