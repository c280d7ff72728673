"""Stage 2: four sparse codes that the dictionary turns into guide vectors (docs/method.md §3)."""
