"""A batch of tasks: planned, recorded, resumed, shown."""
