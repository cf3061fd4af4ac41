"""The tables of the home's one database, and how older ones become newer. Knows no rows.

`user_version` counts the migrations that were applied. A migration is never changed after a release, only added.
"""

from __future__ import annotations

_V1 = """
CREATE TABLE chunks (
    id         TEXT PRIMARY KEY CHECK (length(id) = 64),
    size_bytes INTEGER NOT NULL,
    encoding   TEXT NOT NULL,
    data       BLOB NOT NULL,
    created_s  REAL NOT NULL,
    erased_s   REAL
) WITHOUT ROWID;
CREATE TABLE names (
    name       TEXT PRIMARY KEY,
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    path       TEXT,
    mtime_ns   INTEGER,
    size_bytes INTEGER,
    updated_s  REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX names_by_chunk ON names (chunk_id);
CREATE INDEX names_by_path ON names (path) WHERE path IS NOT NULL;
CREATE TABLE name_history (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL,
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    replaced_s REAL NOT NULL
);
CREATE INDEX name_history_by_name ON name_history (name, id);
CREATE INDEX name_history_by_chunk ON name_history (chunk_id);
CREATE TABLE metadata (
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (chunk_id, key)
) WITHOUT ROWID;
CREATE TABLE token_counts (
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    model      TEXT NOT NULL,
    num_tokens INTEGER NOT NULL,
    PRIMARY KEY (chunk_id, model)
) WITHOUT ROWID;
CREATE TABLE entries (
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    model      TEXT NOT NULL,
    part       INTEGER NOT NULL,
    entry_id   TEXT NOT NULL,
    PRIMARY KEY (chunk_id, model, part, entry_id)
) WITHOUT ROWID;
CREATE INDEX entries_by_entry ON entries (entry_id);
CREATE TABLE profiles (
    name       TEXT PRIMARY KEY,
    body       TEXT NOT NULL,
    created_s  REAL NOT NULL,
    updated_s  REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE sessions (
    id         TEXT PRIMARY KEY CHECK (length(id) = 16),
    name       TEXT UNIQUE,
    model      TEXT NOT NULL,
    created_s  REAL NOT NULL,
    updated_s  REAL NOT NULL,
    head       INTEGER
) WITHOUT ROWID;
CREATE TABLE manifests (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    parent     INTEGER,
    op         TEXT NOT NULL,
    created_s  REAL NOT NULL,
    body       BLOB NOT NULL,
    checksum   BLOB NOT NULL
);
CREATE INDEX manifests_by_session ON manifests (session_id, id);
CREATE INDEX manifests_by_parent ON manifests (parent);
CREATE TABLE turns (
    id         TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    body       BLOB NOT NULL,
    checksum   BLOB NOT NULL,
    PRIMARY KEY (session_id, id)
) WITHOUT ROWID;
CREATE TABLE token_runs (
    digest     TEXT PRIMARY KEY,
    ids        BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE manifest_runs (
    manifest_id INTEGER NOT NULL REFERENCES manifests (id) ON DELETE CASCADE,
    digest      TEXT NOT NULL REFERENCES token_runs (digest),
    PRIMARY KEY (manifest_id, digest)
) WITHOUT ROWID;
CREATE INDEX manifest_runs_by_digest ON manifest_runs (digest);
"""

_V2 = """
CREATE TABLE snapshots (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE CHECK (length(id) = 12),
    session_id  TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    manifest_id INTEGER NOT NULL REFERENCES manifests (id) ON DELETE CASCADE,
    is_auto     INTEGER NOT NULL,
    created_s   REAL NOT NULL,
    meta        TEXT NOT NULL,
    messages    BLOB NOT NULL,
    checksum    BLOB NOT NULL
);
CREATE INDEX snapshots_by_session ON snapshots (session_id, number);
"""

_V3 = """
CREATE TABLE rates (
    model      TEXT NOT NULL,
    setting    TEXT NOT NULL,
    place_s    REAL,
    compute_s  REAL,
    updated_s  REAL NOT NULL,
    PRIMARY KEY (model, setting)
) WITHOUT ROWID;
CREATE TABLE engines (
    model      TEXT NOT NULL,
    setting    TEXT NOT NULL,
    body       TEXT NOT NULL,
    updated_s  REAL NOT NULL,
    PRIMARY KEY (model, setting)
) WITHOUT ROWID;
"""

_V4 = """
CREATE TABLE traces (
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    entry_id   TEXT NOT NULL,
    created_s  REAL NOT NULL,
    PRIMARY KEY (chunk_id, entry_id)
) WITHOUT ROWID;
"""

_V5 = """
ALTER TABLE sessions ADD COLUMN window INTEGER NOT NULL DEFAULT 0;
"""

_V6 = """
CREATE TABLE results (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    key        TEXT NOT NULL UNIQUE CHECK (length(key) = 64),
    reply      TEXT NOT NULL,
    checksum   BLOB NOT NULL,
    created_s  REAL NOT NULL
);
"""

_V7 = """
CREATE TABLE passage_entries (
    chunk_id   TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    setting    TEXT NOT NULL,
    name       TEXT NOT NULL,
    entries    TEXT NOT NULL,
    PRIMARY KEY (chunk_id, setting, name)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_V1, _V2, _V3, _V4, _V5, _V6, _V7)
