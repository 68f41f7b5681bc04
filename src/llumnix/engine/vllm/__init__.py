"""The adapter to vLLM: the only folder that knows vLLM's inside. `hooks.py` lists what it relies on."""
