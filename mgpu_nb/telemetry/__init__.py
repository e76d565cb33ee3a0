"""What the devices and the workers say of themselves: NVML's readings, and their reports."""
