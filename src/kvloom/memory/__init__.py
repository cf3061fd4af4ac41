"""Room: what memory there is, what holds it, how large a window may be, and when to step back. Runs no model."""
