"""The HTTP edge: OpenAI's API, and chunks in it. Knows the session room and nothing below it."""
