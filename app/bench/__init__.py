"""Benchmark of the service: a server process under load, compared with the network alone."""
