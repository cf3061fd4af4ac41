"""CHUNKS: content read from files, the catalog that holds it, profiles. Knows no tokens' meaning and no engine."""
