"""`python -m genrec COMMAND`: the `genrec` command where only this checkout is at hand, as in a job's folder."""

import os

if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
    # A job of Ray. On a cluster of several nodes, torch that was loaded after Ray had connected ended the job: "oneMKL
    # FATAL ERROR: Cannot load libtorch_cpu.so", or a segmentation fault. Loaded first, it works; why is not known.
    import torch  # noqa: F401

from genrec.cli import main

if __name__ == "__main__":
    main()
