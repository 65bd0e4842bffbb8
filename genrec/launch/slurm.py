"""A batch script for Slurm: Ray starts on all machines of the allocation, the first one runs the command."""

import shlex
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from genrec.launch.options import JobDescription, refuse_unknown

NOTICE_S = 180
"""Seconds before the end of the allocation at which the workers are told to save."""


def batch_script(job: JobDescription) -> str:
    """The script for `sbatch`, to be run from the project's folder, which all machines must share."""
    refuse_unknown(job, "slurm")
    template = files("genrec.launch").joinpath("slurm.sh.j2").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    manifest = job.options.manifest
    least, most = job.machines
    hours, minutes = divmod(manifest.time_limit, 60)
    return environment.from_string(template).render(
        name=job.name,
        nodes=str(least) if least == most else f"{least}-{most}",
        cpus=job.shared_machine_cpus,
        gpus=job.machine_gpus,
        gpu_type=manifest.gpu_type,
        memory_gib=manifest.memory,
        time=f"{hours}:{minutes:02d}:00",
        partition=manifest.queue,
        notice_s=NOTICE_S,
        command=shlex.join(["python", "-m", "genrec", *job.words]),
    )
