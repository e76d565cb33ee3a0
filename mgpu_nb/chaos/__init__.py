"""Storms that try every promise of a pool: tasks that crash, hang and lie, on workers that are killed and stopped."""
