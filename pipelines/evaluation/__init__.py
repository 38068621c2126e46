"""How good a checkpoint is, and how sure that is.

metrics.py      per problem: n samples, c correct -> pass@k and its kin        benchmarks.py   sample and judge, resumable
statistics.py   over problems: intervals and paired tests                       samples.py      the table of judged responses
calibration.py  stated confidence against what came true                        scores.py       samples -> scores.json
gate.py         may the candidate be promoted, and which rule said so            lm_eval.py      the same in lm-evaluation-harness' layout
plots.py        scores.json -> tables for `dvc plots`                            report/         the HTML page
"""
