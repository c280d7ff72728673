"""Made images: the built-in demo sets, and defects painted on normal images."""
