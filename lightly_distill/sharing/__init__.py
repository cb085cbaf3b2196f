"""Before a set or a student is public, and while it becomes so: near copies of real images, what is sent, its card.

Imports `evaluation` and what stands below. Start with `publish.py`. The hub itself is an adapter, found by the entry
point `lightly_distill.hubs`; which one a name means is said in `synthetic/address.py`.
"""
