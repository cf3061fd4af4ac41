"""Models behind HTTP: OpenAI-compatible endpoints (llama.cpp's server among them) and Ollama. Their KV cannot be had.

`address` reads what a model argument names, `open` gives the endpoint behind it; the rest is imported with it.
"""
