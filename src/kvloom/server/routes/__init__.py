"""One module per family of endpoints; each knows its shapes and the service, no other family."""
