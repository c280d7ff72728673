"""Why: what a dictionary's atoms look for, and what each adds to a decision (docs/explain.md)."""
