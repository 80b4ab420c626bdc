"""Verifies, decrypts and encrypts callbacks: the only holder of callback keys."""
