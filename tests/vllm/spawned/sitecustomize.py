"""Python imports this where it begins: workers with processes of their own, which vLLM's CPU build spawns, have the
interpreter, too."""

import sys

if "--multiprocessing-fork" in sys.orig_argv:
    import interpreted_kernels

    interpreted_kernels.leave_one_out()
