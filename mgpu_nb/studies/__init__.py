"""Studies: what more devices gain, and what fits on one."""
