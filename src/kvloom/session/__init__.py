"""The façade: loom and session, which join all rooms. The edges call this, and nothing below."""
