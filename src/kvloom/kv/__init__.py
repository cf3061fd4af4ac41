"""Entries and tiers: canonical K/V rows, their file format, and where they are kept. Knows no engine and no text."""
