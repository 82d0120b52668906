"""The optimizer step under DeepSpeed: ranks, chunks, gradient cache, loop."""
