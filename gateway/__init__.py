"""Faces the world and holds no secret: intake, inbox, turns."""
