"""What all tests share: one thread, no windows, and no setting of the user's that changes a result."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the processors
os.environ.setdefault("MPLBACKEND", "Agg")
for name in ("COMPANION_LIVE", "COURSE_WORKSPACE"):
    os.environ.pop(name, None)
