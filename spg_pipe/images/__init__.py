"""Picture files: what one is, how its size, pixels and values are read, and what to note."""
