"""Planning, channels and resizing: the pipeline's work on pixels between decoding and encoding."""
