"""The adapter to vLLM 0.32: the only folder that knows vLLM's inside. `hooks.py` lists what it relies on."""
