"""Batched RSA and modular exponentiation, and the OpenSSL provider in front of them."""
