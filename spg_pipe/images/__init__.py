"""What one picture file is, and how its size, pixels and values are read."""
