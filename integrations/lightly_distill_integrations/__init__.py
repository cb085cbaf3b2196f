"""Adapters between lightly_distill and the libraries of its users, found through entry points."""
