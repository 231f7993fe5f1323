"""The operators in C, and their library as Python sees it."""
