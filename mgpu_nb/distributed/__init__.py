"""Process groups: ranks started from a notebook, by torchrun, by srun and by sbatch."""
