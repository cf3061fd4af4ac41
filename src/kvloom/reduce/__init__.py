"""Less text for the same window: `truncate` cuts one text, `summarize` lets a model shorten many turns. Knows no KV."""
