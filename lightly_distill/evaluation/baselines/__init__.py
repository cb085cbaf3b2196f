"""What a set is compared with: the arms, and the distillers that need labels.

Imports `method`, `runs` and what stands below. Start with `arms.py`.
"""
