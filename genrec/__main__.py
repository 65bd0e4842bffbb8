"""`python -m genrec COMMAND`: the `genrec` command where only this checkout is at hand, as in a job's folder."""

import os

if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
    # A job of Ray. On a cluster of several nodes, loading torch after Ray had connected ended the process: "oneMKL FATAL
    # ERROR: Cannot load libtorch_cpu.so", or a segmentation fault. Loaded first, both work. The reason is not known.
    import torch  # noqa: F401

from genrec.cli import main

if __name__ == "__main__":
    main()
