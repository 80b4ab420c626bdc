"""Understands and answers, and runs skills. Anyone may swap it for another implementation."""
