"""Supervised next-token training: the base model's corpus and the SFT cold start."""
