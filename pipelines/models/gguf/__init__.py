"""A GGUF file -> a Hugging Face folder in bfloat16: `convert.py`, after `header.py` has looked at every number of the file's head.

header.py      the head of a file, read within bounds: settings, and where each tensor lies
shapes.py      per architecture: settings -> config, and the tensors that must be there
tokenizer.py   vocabulary, merges and special tokens -> the model's own tokenizer
convert.py     all of it, with the weights as transformers reads them
"""
