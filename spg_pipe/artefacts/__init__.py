"""Files that are whole or absent: atomic writing, fingerprints, digests, tensors, checkpoints."""
