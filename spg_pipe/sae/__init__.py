"""Stage 1: the sparse autoencoder whose dictionary the guides are made of (docs/method.md §2)."""
