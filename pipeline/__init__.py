"""Record in, record out: the served half of Eddy.

Nothing in this package imports torch, speaks HTTP or parses a command line. Read ``worker.py`` from top to
bottom to follow a record through the rooms.
"""

import os

# onnxruntime's wheels report usage to their maker unless told not to, and read this as they load. What runs beside
# somebody's streams sends nothing that they did not ask for; a value that is set already stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
