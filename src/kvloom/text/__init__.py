"""TEXT -> TOKENS: chat templates, pieces, counting, splitting, streaming. Knows a vocabulary, no engine, no disk."""
