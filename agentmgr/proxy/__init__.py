"""Does, to WebSockets: one address for every client, and a tunnel from each to its instance."""

from .access import Authenticator, Identity
from .certificate import Certificate
from .connections import ConnectionObserver
from .gateway import Gateway
from .limits import GatewayLimits

__all__ = ["Authenticator", "Certificate", "ConnectionObserver", "Gateway", "GatewayLimits", "Identity"]
