"""Tries the codec on a folder of files: ``python -m tests.corpus FOLDER``."""
