"""The HTML report, tables for the terminal, and heat maps."""
