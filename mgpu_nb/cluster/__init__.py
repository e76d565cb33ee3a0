"""Pools on other machines: an agent on each node runs the engine of its machine for a pool that is elsewhere."""
