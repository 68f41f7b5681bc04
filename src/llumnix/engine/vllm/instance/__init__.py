"""An instance: vLLM's engine core with a llumlet in it."""
