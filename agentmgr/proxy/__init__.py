"""Does, to WebSockets: one address for every client, and a tunnel from each to its instance."""

from .gateway import Gateway
from .limits import GatewayLimits
from .sessions import SessionObserver

__all__ = ["Gateway", "GatewayLimits", "SessionObserver"]
