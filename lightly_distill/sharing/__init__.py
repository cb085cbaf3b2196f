"""Before a set or a student is public, and while it becomes so: near copies of real images, what is sent, its card.

Imports `runs` and what stands below; the Hub itself is an adapter, found by the entry point `lightly_distill.hubs`.
Start with `publish.py`.
"""
