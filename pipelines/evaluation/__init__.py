"""How good a checkpoint is, and how sure that is.

metrics.py      per problem: n samples, c correct -> pass@k and its kin        benchmarks.py   sample and judge, resumable
statistics.py   over problems: intervals and paired differences                 scores.py       samples -> scores.json
gate.py         may the candidate be promoted                                    report/          the HTML page
"""
