"""Versions of the packages that decide whether a run can be read or repeated."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("genrec", "torch", "ray", "deepspeed", "pyarrow", "numpy")


def installed_versions() -> dict[str, str]:
    """Installed versions by package name; absent packages are left out."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
