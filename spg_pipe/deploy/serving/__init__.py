"""A detector behind HTTP: the Open Inference Protocol, image files, a page to look at results."""
