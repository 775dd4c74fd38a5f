"""What all tests share: one thread, no windows, and no setting of the user's that changes a result."""

import os

import matplotlib

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the processors
for name in ("COMPANION_LIVE", "COURSE_WORKSPACE", "MPLBACKEND"):  # kernels of notebooks inherit what is left here
    os.environ.pop(name, None)

matplotlib.use("Agg")
