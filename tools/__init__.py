"""Programs for building and releasing; no part of what is installed."""
