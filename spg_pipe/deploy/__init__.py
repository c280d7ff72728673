"""A detector elsewhere: exported for other runtimes, and served over HTTP."""
