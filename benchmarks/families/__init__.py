"""Tiny random models of the kinds that people serve, as checkpoints on disk that any vLLM loads by its path.

`table.py` has the kinds, with what `llumnix serve` is to be told for each; `checkpoints.py` makes what is missing.
"""
