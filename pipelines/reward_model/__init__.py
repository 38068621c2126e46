"""What reward models learn from and by: pairs and verdicts as examples of the loop of supervised training, and their losses."""
