"""MTLSign: a watermark as a second, secret task of the network."""
