"""OpenAI's shapes as pydantic models: what a request may say and what a reply says. Knows no engine and no route."""
