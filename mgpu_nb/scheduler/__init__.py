"""From a job to its outcome: who runs it, where, and when."""
