"""A tenant's loom: model, cells and tiers are its host's; chunks, sessions and what is found are its own."""

from __future__ import annotations

from kvloom.errors import UsageError
from kvloom.session.loom import Loom
from kvloom.session.tenant_homes import home_of
from kvloom.session.values import GcReport


class TenantLoom(Loom):
    """See `Loom.tenant`."""

    def __init__(self, host: Loom, name: str) -> None:
        if not name.strip():
            raise UsageError("a tenant needs a name")
        self._host = host
        # Of the model everything is the host's own object: one pool, one guard, one book of who has which cells.
        self.engine, self.store, self.settings, self.window = host.engine, host.store, host.settings, host.window
        self.sizing, self.policy, self.foreground = host.sizing, host.policy, host.foreground
        self.device, self.pool, self.guard, self.monitor = host.device, host.pool, host.guard, host.monitor
        self.embeddings = host.embeddings
        self.builder, self.model_name, self._model_path = host.builder, host.model_name, host._model_path
        self._rotator, self.rates = host._rotator, host.rates
        self._tenants: dict[str, Loom] = {}
        home = home_of(host.home, name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open_home(home, name)
        self.guard.join(self)

    def tenant(self, name: str) -> Loom:
        """Raises UsageError: tenants have no tenants."""
        raise UsageError(f"a tenant's loom has no tenants of its own: there is no {name!r} here")

    def gc(self) -> GcReport:
        """The tiers are the host's, and so is what is collected in them."""
        return self._host.gc()

    def shrink_pool(self) -> bool:
        """The cells are everybody's: what no window of any tenant needs."""
        return self._host.shrink_pool()

    def _open_libraries(self) -> None:
        """Among the host's: a handful of all tenants is open, not a handful of each."""
        self._libraries, self.embedders = self._host._libraries, self._host.embedders

    def _close_rooms(self) -> None:
        self.guard.leave(self)
        self._database.close()
