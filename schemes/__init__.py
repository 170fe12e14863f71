"""Watermarking schemes: what is defended. This file imports no plugin; names become classes when they are used."""

SCHEMES: dict[str, str] = {
    "mtlsign": "schemes.mtlsign:MTLSign",
    "mtlsign_fixed": "schemes.mtlsign:MTLSignFixed",
    "adi": "schemes.adi:Adi",
    "uchida": "schemes.uchida:Uchida",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.schemes``."""
