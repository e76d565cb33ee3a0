"""molecules: an equivariant diffusion model draws molecules, a force field guides it, any number of devices."""
