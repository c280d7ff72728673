"""A researcher's questions: `compare` methods, `choose` or `sweep` settings; and baselines."""
