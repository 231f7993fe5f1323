"""What the pipeline does with pixels between decoding and encoding."""
