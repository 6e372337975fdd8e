"""Stream -> slot, and the stream's row as a snapshot."""
