"""What this machine has: GPUs, cores, memory; and the slots that workers take on them."""
