"""Record in, record out: the served half of Eddy.

Nothing in this package imports torch, speaks HTTP or parses a command line. Read ``worker.py`` from top to
bottom to follow a record through the rooms.
"""
