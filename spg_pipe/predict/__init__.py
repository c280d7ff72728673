"""Your own images: read, judge, write."""
