"""The slash commands. Importing this package fills the registry; a new command is one new function in a module here."""

from kvloom.cli.slash import chunks, context, sessions, settings

__all__ = ["chunks", "context", "sessions", "settings"]
