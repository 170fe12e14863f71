"""Zhang et al.: three backdoors as watermarks."""
