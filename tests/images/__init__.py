"""Picture files, one at a time."""
