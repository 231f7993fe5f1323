"""The authors' weights: download and verification."""
