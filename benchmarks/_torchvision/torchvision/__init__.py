"""A stand-in for torchvision, for tests and benchmarks on CPUs: what Transformers takes of it to prepare images.

vLLM's models that look at images import Transformers' processors, which import torchvision when they are loaded. The
usual index has it for CUDA alone, and that does not load beside PyTorch's CPU build (`operator torchvision::nms does
not exist`). It is found through PYTHONPATH, by servers that are started with it there, and by nobody else: who serves
such models installs torchvision as vLLM says. Pixels may differ from torchvision's in the last bit.
"""

__version__ = "0.28.0"
