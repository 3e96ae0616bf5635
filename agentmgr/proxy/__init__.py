"""Does, to WebSockets: one address for every client, and a tunnel from each to its instance."""

from .access import Authenticator, Identity
from .certificate import Certificate
from .gateway import Gateway
from .limits import GatewayLimits
from .sessions import SessionObserver

__all__ = ["Authenticator", "Certificate", "Gateway", "GatewayLimits", "Identity", "SessionObserver"]
