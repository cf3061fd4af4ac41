"""Side by side with llama.cpp's own server, on this machine and in one run. Knows the façade only."""
