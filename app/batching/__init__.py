"""Admission, the fair queue, batches, and the worker thread that runs them."""
