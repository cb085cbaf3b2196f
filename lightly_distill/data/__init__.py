"""From whatever a user calls images to uint8 tensors of one size: found, opened, decoded, kept.

Knows no model; imports `runtime`, `adapters` and `errors`. Start with `source.py`, where all of it comes together;
`locate.py` reads what a user writes, `items.py` and `streams.py` find the image in an item, `decode.py` decodes it.
"""
