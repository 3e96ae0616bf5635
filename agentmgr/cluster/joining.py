"""Which machines may be nodes, and what they are called: the records of nodes, and the secrets to join."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta

import trio
from attrs import evolve

from ..ca import Authority, key_digest
from ..core.secrets import key_digest as word_digest
from ..credentials import MANAGER, Member
from ..errors import Conflict, InvalidRequest, NodeNotFound
from ..generation import Generation
from ..models import JoinSecret, NodeRecord, utc_now
from ..models.fields import ID
from ..models.members import unique_name
from ..models.nodes import NAME_LABEL, label
from ..node.joining import JoinAnswer, JoinRequest, Secret
from ..storage.store import Store
from .nodes import Nodes

logger = logging.getLogger(__name__)

INVITED_S = 300.0  #: how long a secret is good where nothing else is said
LONGEST_S = 7 * 86400.0
MOST_USES = 10_000
_MOST_LABELS = 64
_KEPT = timedelta(days=1)  # after its expiry a secret is still known, for the reason of a refusal


class Joining:
    """Issues secrets to join and certificates, and keeps the nodes' records in the database."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        nodes: Nodes,
        records: Iterable[NodeRecord],
        secrets: Iterable[JoinSecret],
        joined: Callable[[NodeRecord], None],
        obeys: Callable[[str, Generation], None] = lambda node_id, newer: None,
    ) -> None:
        """`joined` is called with each node that was not known before; `obeys` with the id of one that says
        which manager it obeys now, in place of the one that was here.
        """
        self._store, self._authority, self._nodes, self._joined = store, authority, nodes, joined
        self._obeys = obeys
        self._records = {record.node_id: record for record in records}
        self._secrets = {secret.digest: secret for secret in secrets}
        self._writing = trio.Lock()

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._records

    def all(self) -> tuple[NodeRecord, ...]:
        """The manager's own machine first."""
        return tuple(
            sorted(self._records.values(), key=lambda record: (record.node_id != MANAGER, record.name))
        )

    def find(self, ref: str) -> NodeRecord:
        """By its name or its id. Raises `NodeNotFound`."""
        for record in self._records.values():
            if ref and ref in (record.name, record.node_id):
                return record
        raise NodeNotFound(f"no node is called {ref!r}; `agentmgr nodes` lists them")

    async def invite(self, uses: int = 1, expires_s: float = INVITED_S) -> tuple[JoinSecret, Secret]:
        """What lets `uses` machines join. Raises `InvalidRequest`."""
        if not 1 <= uses <= MOST_USES:
            raise InvalidRequest(f"uses must be from 1 to {MOST_USES}, not {uses}")
        if not 0 < expires_s <= LONGEST_S:
            raise InvalidRequest(
                f"a secret is good for at most {LONGEST_S / 86400:g} days, and for some time"
            )
        secret, now = Secret.new(self._authority.fingerprint), utc_now()
        kept = JoinSecret(word_digest(secret.word), now + timedelta(seconds=expires_s), uses)
        async with self._writing:
            for old in tuple(self._secrets.values()):
                if old.expires_at + _KEPT < now:
                    await self._store.delete_join_secret(old.digest)
                    del self._secrets[old.digest]
            await self._store.put_join_secret(kept)
            self._secrets[kept.digest] = kept
        return kept, secret

    async def answer(self, ask: JoinRequest, shown: Member | None) -> JoinAnswer:
        """What a machine is answered that has shown this certificate, or none."""
        if ask.obeys is not None and shown is not None and shown.node_id in self._records:
            self._obeys(shown.node_id, ask.obeys)
            return JoinAnswer()
        async with self._writing:
            try:
                if shown is None:
                    return await self._join(ask)
                return self._renew(ask, shown)
            except InvalidRequest as error:
                return JoinAnswer(refusal=error.message)

    def _renew(self, ask: JoinRequest, shown: Member) -> JoinAnswer:
        """Raises `InvalidRequest`."""
        record = self._records.get(shown.node_id)
        if record is None or shown.node_id == MANAGER:
            raise InvalidRequest(FORGOTTEN)
        request = ask.request.encode()
        if key_digest(request) != record.key_digest:
            raise InvalidRequest(f"node {record.name} has joined with another key: let it join again")
        return JoinAnswer(self._authority.issue(request, record.node_id).decode(), record.name)

    async def _join(self, ask: JoinRequest) -> JoinAnswer:
        """Raises `InvalidRequest`."""
        secret = self._secrets.get(word_digest(ask.secret))
        if secret is None:
            raise InvalidRequest(
                "this secret is not known here, or expired long ago: make one with `agentmgr nodes invite`"
            )
        request, known = ask.request.encode(), self._records.get(ask.node_id)
        digest = key_digest(request)
        # The answer to a machine that has asked already may have been lost.
        again = known is not None and known.key_digest == digest and known.name in secret.used_by
        if not again and (refusal := secret.refusal(utc_now())) is not None:
            raise InvalidRequest(f"{refusal}: make another one with `agentmgr nodes invite`")
        _check(ask)
        if known is not None and known.key_digest != digest:
            raise InvalidRequest(
                f"node {known.name} has this id, and another key: remove the directory of this node, unless "
                f"it is a copy, and join again (`agentmgr nodes forget {known.name}` where that one is gone)"
            )
        record = NodeRecord(
            node_id=ask.node_id,
            name=self._name(ask, known),
            address=ask.address,
            labels=ask.labels,
            resources=ask.resources,
            key_digest=digest,
            joined_at=utc_now() if known is None else known.joined_at,
            cordoned=known is not None and known.cordoned,
        )
        certificate = self._authority.issue(request, record.node_id)
        used = secret if again else secret.used(record.name)
        await self._store.put_join_secret(used, with_node=record)
        self._secrets[used.digest], self._records[record.node_id] = used, record
        if known is None:
            logger.info("node %s has joined, at %s", record.name, record.address)
            self._nodes.add(record.node_id, record.name, address=record.address, labels=record.labels)
            self._joined(record)
        return JoinAnswer(certificate.decode(), record.name)

    def _name(self, ask: JoinRequest, known: NodeRecord | None) -> str:
        if known is not None:
            return known.name  # services may be placed by it
        return unique_name(ask.name, frozenset(record.name for record in self._records.values()))

    async def forget(self, ref: str, *, linked: Callable[[str], bool]) -> NodeRecord:
        """It is no node any more: its certificate lets it in no longer. Raises `NodeNotFound`, `Conflict`."""
        async with self._writing:
            record = self.find(ref)
            if record.node_id == MANAGER:
                raise Conflict(
                    f"{record.name} is the manager's own machine: `agentmgr nodes cordon` keeps it free"
                )
            if linked(record.node_id):
                raise Conflict(
                    f"node {record.name} is linked: end `agentmgr node` there first, or it would run on "
                    "without a manager"
                )
            await self._store.delete_node(record.node_id)
            del self._records[record.node_id]
            self._nodes.forget(record.node_id)
        return record

    async def cordon(self, ref: str, cordoned: bool, *, by_itself: bool = False) -> NodeRecord:
        """Places nothing new there, or does so again. Raises `NodeNotFound`.

        `by_itself`: the node has asked for it, as its machine or its job ends. Where its directory lives on,
        the next daemon has come to work.
        """
        async with self._writing:
            record, handle = self.find(ref), self._nodes.get(self.find(ref).node_id)
            left_by = record.left_by if record.cordoned else ""
            if not cordoned or not by_itself:
                left_by = ""
            elif not record.cordoned and handle is not None and handle.facts is not None:
                left_by = handle.facts.daemon_id  # what an operator has cordoned stays so
            record = evolve(record, cordoned=cordoned, left_by=left_by)
            await self._put(record)
            self._nodes.cordon(record.node_id, cordoned)
        return record

    def is_back(self, node_id: str) -> bool:
        """Whether another daemon of it is linked than the one that left (`cordon`)."""
        handle, record = self._nodes.get(node_id), self._records.get(node_id)
        if handle is None or handle.facts is None or record is None or not record.left_by:
            return False
        return handle.linked and handle.facts.daemon_id != record.left_by

    async def describe(self, node_id: str) -> None:
        """Writes down what the node's daemon says of it now."""
        if self.is_back(node_id):
            await self.cordon(node_id, False)
        async with self._writing:
            handle, record = self._nodes.get(node_id), self._records.get(node_id)
            if handle is not None and record is not None:
                resources = record.resources if handle.facts is None else handle.facts.resources
                labels = {key: value for key, value in handle.labels.items() if key != NAME_LABEL}
                await self._put(evolve(record, address=handle.address, labels=labels, resources=resources))

    async def _put(self, record: NodeRecord) -> None:
        await self._store.put_node(record)
        self._records[record.node_id] = record


FORGOTTEN = (
    "this node was forgotten (`agentmgr nodes forget`), or the manager's database is older than its joining: "
    "join again, with a secret of `agentmgr nodes invite`"
)


def _check(ask: JoinRequest) -> None:
    """Raises `InvalidRequest` for what no daemon of ours says."""
    if not ID.fullmatch(ask.node_id) or not ask.node_id.startswith("nod_"):
        raise InvalidRequest(f"this is no id of a node: {ask.node_id!r}")
    if not ask.address.isprintable() or len(ask.address) > 255 or len(ask.labels) > _MOST_LABELS:
        raise InvalidRequest(f"a node has an address, and at most {_MOST_LABELS} labels")
    for key, value in ask.labels.items():
        label(f"{key}={value}")
        if key == NAME_LABEL:
            raise InvalidRequest(f"the label {NAME_LABEL} is the node's name: --name gives it")
