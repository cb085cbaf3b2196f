"""The two networks: the frozen target and the students.

Knows no synthetic set; imports `runtime`, `adapters` and `errors`. Start with `targets.py`, and `encoders.py`, which
finds a target inside a model; `students.py` builds students by name; `maps.py` has the last maps of both. `rows.py`
puts a vector and a map into one row of numbers, and `recipe.py` is how a student is trained on such rows.
"""
