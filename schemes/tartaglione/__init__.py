"""Tartaglione et al.: a picture in locked weights."""
