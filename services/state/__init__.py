"""``eddy state``: what a group holds of its streams, looked at, ended by hand, and moved elsewhere."""
