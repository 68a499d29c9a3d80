"""The hinge: what trains writes a run folder, what reports only reads it."""
