"""The HTML page of a recipe's results, and tables for the terminal."""
