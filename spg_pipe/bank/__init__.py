"""Few-shot: what the patches of a few normal images of the target look like, as a memory bank."""
