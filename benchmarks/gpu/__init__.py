"""KV caches on a device without an engine: what `gpu_kv.py` measures, part by part."""
