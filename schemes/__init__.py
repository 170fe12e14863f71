"""Watermarking schemes: what is defended. This file imports no plugin; names become classes when they are used."""

SCHEMES: dict[str, str] = {
    "mtlsign": "schemes.mtlsign:MTLSign",
    "mtlsign_fixed": "schemes.mtlsign:MTLSignFixed",
    "adi": "schemes.adi:Adi",
    "tartaglione": "schemes.tartaglione:Tartaglione",
    "dsn": "schemes.dsn:Dsn",
    "zhang_content": "schemes.zhang:ZhangContent",
    "zhang_noise": "schemes.zhang:ZhangNoise",
    "zhang_unrelated": "schemes.zhang:ZhangUnrelated",
    "uchida": "schemes.uchida:Uchida",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.schemes``."""
