"""Pictures and tables: the only rooms that import matplotlib."""
