"""Effects: everything that talks to DVC, MLflow, Prefect's artifacts, the operating system and other processes.

`pipelines` knows none of it. Each module has one concern; `execution.py` puts them together into the one way a stage is run.
Modules import their heavy library inside functions, so that a command that needs none starts at once.
"""
