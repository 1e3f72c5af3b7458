"""A reward model behind HTTP: requests of many clients in common batches, in the forms of known reward servers.

Importing this needs no web framework; running it needs the extra ``serve``.
"""

from .limits import ServingLimits
from .request_queue import Asked, QueueFullError, RequestQueue
from .running import run_server, serving_app

__all__ = ["Asked", "QueueFullError", "RequestQueue", "ServingLimits", "run_server", "serving_app"]
