"""The terminal edge: commands, chat and views. Knows the session façade and nothing below it."""
