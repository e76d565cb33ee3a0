"""Records and values on disk, never a pickle."""
