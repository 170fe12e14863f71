"""Adi et al.: a backdoor as a watermark."""
