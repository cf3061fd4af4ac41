"""Which model, and what it costs: headers, registry, fetching, fingerprints, memory forecast. Loads no weights."""
