"""The variants of a server: their weights, downloads, states and loaded models."""
