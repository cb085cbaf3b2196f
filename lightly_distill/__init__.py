"""Distils a large unlabelled image set into a small synthetic one, from any Lightly SSL model."""
