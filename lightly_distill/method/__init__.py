"""KRR-ST, and nothing of files that a run keeps: the method with its settings, pool, real batches and memory.

Imports `models`, `data`, `runtime` and `errors`. Read `distill.py` first, it is the algorithm top to bottom; the
gradient of the images is in `step.py`, the outer loss in `objective.py`, the ridge solve in `krr.py`, all settings in
`config.py`, when to log and save in `cadence.py`, and what a checkpoint holds in `state.py`. What is learned is
rounded to 8 bits in `rounding.py`. Real batches are put together in `real_images.py`; what the target sees of an
image is in `sight.py`, what students are to predict of it in `truth.py`, from representations that
`representation_cache.py` keeps or the user brought (`brought.py`), as they are or projected (`projection.py`), and
from its maps (`target_maps.py`).
"""
