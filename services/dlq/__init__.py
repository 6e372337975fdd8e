"""``eddy dlq``: what could not be served, looked at, and sent through its stream again."""
