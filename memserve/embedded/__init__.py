"""All of memserve on one machine.

`Stack` starts two private redis-servers, the gateway and the workers, and keeps each of them running.
`stack.py` has the order of the steps, `part.py` the supervision of one process, `children.py` the starting
and sweeping of processes.
"""

from memserve.embedded.children import marked_processes
from memserve.embedded.redis_server import REDIS_ENVIRONMENT, redis_executable
from memserve.embedded.stack import Stack

__all__ = ["REDIS_ENVIRONMENT", "Stack", "marked_processes", "redis_executable"]
