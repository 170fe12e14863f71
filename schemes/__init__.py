"""Watermarking schemes by name. This file imports no plugin: a class is imported when its name is used."""

SCHEMES: dict[str, str] = {
    "mtlsign": "wmarena.schemes.mtlsign.scheme:MTLSign",
    "mtlsign_fixed": "wmarena.schemes.mtlsign.scheme:MTLSignFixed",
    "adi": "wmarena.schemes.adi.scheme:Adi",
    "tartaglione": "wmarena.schemes.tartaglione.scheme:Tartaglione",
    "dsn": "wmarena.schemes.dsn.scheme:Dsn",
    "zhang_content": "wmarena.schemes.zhang.schemes:ZhangContent",
    "zhang_noise": "wmarena.schemes.zhang.schemes:ZhangNoise",
    "zhang_unrelated": "wmarena.schemes.zhang.schemes:ZhangUnrelated",
    "uchida": "wmarena.schemes.uchida:Uchida",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.schemes``."""
