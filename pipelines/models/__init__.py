"""Policies: loading and saving, the embedded tiny model with its tokenizer, a decoder with a key-value cache, token scores."""
