"""The feature store: tokens of a dataset split, computed once (docs/store.md)."""
