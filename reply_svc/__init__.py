"""Delivers to the platforms: the only holder of app secrets and access tokens."""
