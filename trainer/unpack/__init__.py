"""A GGUF file as a folder that transformers loads: read, dequantised tensor by tensor, checked."""
