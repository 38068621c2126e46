"""Kind command: an outside program makes the model. docs/COMMAND.md is the contract.

folder.py    what the program gets          touchstone_stage.py   the program's side: a file without dependencies that it may import
program.py   the process, and its end       scorer.py             our verifiers over HTTP, for the program
figures.py, rollouts.py, weights.py         what it leaves: read, checked, refused by name
"""
