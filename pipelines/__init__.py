"""The science of Touchstone: from raw problems to merged weights, with no orchestrator in sight.

Nothing below this package imports prefect, mlflow or dvc, so every stage runs on a bare GPU box with torch,
transformers and pyarrow: `python -m pipelines STAGE` (see `__main__.py`).
"""
