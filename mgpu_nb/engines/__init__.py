"""Where processes come from, and how values travel to them and back."""
