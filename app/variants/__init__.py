"""Which variants exist, where their weights are, and whether they are loaded."""
