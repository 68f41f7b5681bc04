"""What `gpu_proof.py` is made of."""
