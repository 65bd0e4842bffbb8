"""Which files of a project go to the cluster, what must not, and the archive that they travel in.

In a git tree: files that git tracks, and those that it neither tracks nor ignores. Elsewhere: everything but what every
project has and no job needs (environments, caches, runs, prepared sets). Secrets and large files are refused by name.
"""

import fnmatch
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genrec.errors import ConfigError

MAX_FILE_BYTES = 20 * 2**20
MAX_TREE_BYTES = 100 * 2**20
GIT_TIMEOUT_S = 60
_NUM_NAMED = 5

LEFT_OUT = (
    ".git", ".hg", ".venv", "venv", "__pycache__", "node_modules", "runs", "prepared", "wandb", "build", "dist",
    ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints", ".DS_Store",
    "*.egg-info", "*.pyc",
)  # fmt: skip
"""Names of files and folders that are left out unless git tracks them."""

SECRET_NAMES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    ".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd", "credentials", "credentials.json", "auth_token",
    "service-account*.json", "service_account*.json", "kubeconfig", "*.kdbx",
    "*credentials.json", "kaggle.json", ".ray-token-*", ".vault-token", ".pgpass", ".s3cfg", ".boto", ".dockercfg",
    "*.ppk", "*.keystore", "*.tfstate", "secrets.yaml", "secrets.yml", "secrets.json", "secrets.toml",
    "*.env", ".envrc", ".npmrc", ".my.cnf", "client_secret*.json", "*.p8",
)  # fmt: skip
SECRET_PLACES = (
    "*/.aws/*", "*/.ssh/*", "*/.gnupg/*", "*/.azure/*", "*/.kube/config", "*/.docker/config.json", "*/gcloud/*.db",
    "*/huggingface/token", "*/.huggingface/token",
)  # fmt: skip
"""Files whose folder says what they are; paths begin with a slash here."""
HARMLESS_NAMES = ("*.example", "*.sample", "*.template", "*.pub")

# Shapes that tokens of well-known services have.
SECRET_TEXTS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS access key": rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": rb"(?i)secret_?access_?key['\"]?\s*[=:]\s*['\"]?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "an Azure storage key": rb"(?i)account_?key['\"]?\s*[=:]\s*['\"]?[A-Za-z0-9/+]{86}==",
    "a GitHub token": rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}\b",
    "a Google API key": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "an OpenAI or Anthropic key": rb"\bsk-(proj|svcacct|ant)-[A-Za-z0-9_-]{20,}",
    "a token of PyPI": rb"\bpypi-AgE[A-Za-z0-9_-]{50,}",
    "a Slack token": rb"\bxox[abprs]-[0-9A-Za-z-]{20,}",
    "a Weights & Biases key": rb"(?i)wandb_api_key['\"]?\s*[=:]\s*['\"]?[0-9a-z_]{40,}\b",
}


@dataclass(frozen=True, slots=True)
class WorkingTree:
    """The files of a project that a job needs: paths below `folder`, sorted, and their bytes in all."""

    folder: Path
    files: tuple[str, ...]
    num_bytes: int
    in_git: bool

    def write_archive(self, path: Path) -> int:
        """Writes them as a zip, the same bytes for the same files, so that Ray uploads it once; its size in bytes."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in self.files:
                source = self.folder / name
                entry = zipfile.ZipInfo(name)  # its time is 1980
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if os.access(source, os.X_OK) else 0o644) << 16
                archive.writestr(entry, _content(self.folder, name))
        return path.stat().st_size


def collect(folder: Path, exclude: Sequence[str] = ()) -> WorkingTree:
    """What a job from `folder` ships, without paths that match a pattern of `exclude`.

    Raises ConfigError for a folder that is none or empty, secrets, links that lead out of it, and large files.
    """
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {folder} is not a folder; give the one that holds your configs.")
    listed = _git_files(folder)
    names = sorted(_walk(folder) if listed is None else listed)
    files, sizes = [], {}
    for name in names:
        path = folder / name
        if name in exclude or _matches(name, exclude) or _matches(path.name, exclude):
            continue
        _refuse_odd_name(name)
        if path.is_symlink() and not _target(path).is_relative_to(_target(folder)):
            raise ConfigError(f"{name} is a link that leads out of {folder}; copy the file, or {_exclude(name)}.")
        if path.is_symlink() and path.is_dir():
            raise ConfigError(f"{name} is a link to a folder, which is not shipped; copy it, or {_exclude(name)}.")
        if path.is_file():  # not a submodule, a socket, or what was deleted and is still tracked
            files.append(name)
            sizes[name] = path.stat().st_size
    if not files:
        raise ConfigError(f"There is nothing to ship in {folder}; give the folder of your project with --working-dir.")
    _refuse_secret_names(folder, files)
    _refuse_large(sizes)
    _refuse_secret_texts(folder, files)
    return WorkingTree(folder, tuple(files), sum(sizes.values()), listed is not None)


def _git_files(folder: Path) -> list[str] | None:
    """Tracked files, and untracked ones that are neither ignored nor left out everywhere; None outside of git."""
    tracked = _git(folder, "ls-files", "-z", "--cached")
    others = _git(folder, "ls-files", "-z", "--others", "--exclude-standard")
    if tracked is None or others is None:
        return None
    return [*tracked, *(name for name in others if not any(map(_is_left_out, name.split("/"))))]


def _git(folder: Path, *arguments: str) -> list[str] | None:
    """What git lists; None outside of a git tree.

    Raises ConfigError where there is a tree that git cannot read: without it, what is ignored there would be shipped.
    """
    tree = next(
        (parent for parent in (folder.resolve(), *folder.resolve().parents) if (parent / ".git").exists()), None
    )
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        if tree is None:
            return None
        raise ConfigError(
            f"{tree} is a git tree and there is no git to say what it ignores, so files that should stay could be "
            "shipped; install git."
        ) from None
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"git did not list the files of {folder} within {GIT_TIMEOUT_S} s; try again.") from error
    if done.returncode and tree is not None:
        said = " ".join(os.fsdecode(done.stderr).split())[:300]
        raise ConfigError(
            f"git does not say what it ignores in {tree} ({said}), so files that should stay could be shipped; mend "
            "that, or give a folder outside of it with --working-dir."
        )
    return None if done.returncode else [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, onerror=_unlisted):
        folders[:] = [name for name in folders if not _is_left_out(name)]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in [*names, *links]:
            if not _is_left_out(name):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _unlisted(error: OSError) -> None:
    raise ConfigError(
        f"{error.filename} cannot be listed ({error.strerror}), so what a job needs could be missing; mend its "
        "permissions, or move it out of the folder."
    ) from error


def _is_left_out(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)


def _refuse_odd_name(name: str) -> None:
    """An archive holds names as UTF-8, and a line break in one would break every list of them."""
    shown = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "?", name)
    if shown != name:
        raise ConfigError(
            f"{name!a} has a line break in its name, or what is no character, and an archive does not carry that; "
            f"rename it, let git ignore it, or {_exclude(shown)}."
        )


def _target(path: Path) -> Path:
    """Where a path leads to in the end; `Path.resolve` raises for links that lead in a circle."""
    return Path(os.path.realpath(path))


def _exclude(name: str) -> str:
    """What leaves a file out, as it is typed into a shell."""
    quoted = name.replace("'", "'\"'\"'")
    return f"add --exclude '{quoted}'"


def _content(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be read ({error.strerror}), so it can be neither looked through nor shipped; mend its "
            f"permissions, or {_exclude(name)}."
        ) from error


def _refuse_secret_names(folder: Path, files: Sequence[str]) -> None:
    top = _target(folder)

    def is_secret(name: str) -> bool:
        # What a link ships is the file that it leads to.
        for place in (f"/{name}".lower(), f"/{_target(folder / name).relative_to(top)}".lower()):
            last = place.rpartition("/")[2]
            if (_matches(last, SECRET_NAMES) or _matches(place, SECRET_PLACES)) and not _matches(last, HARMLESS_NAMES):
                return True
        return False

    found = [name for name in files if is_secret(name)]
    if found:
        raise ConfigError(
            f"{_named(found)} would be copied to the cluster, and the name says that it holds a secret; take it out of "
            f"the folder, let git ignore it, or {_exclude(found[0])}."
        )


def _refuse_secret_texts(folder: Path, files: Sequence[str]) -> None:
    for name in files:
        content = _content(folder, name)
        for what, pattern in SECRET_TEXTS.items():
            if re.search(pattern, content):
                raise ConfigError(
                    f"{name} would be copied to the cluster, and it holds what looks like {what}; take that out, let "
                    f"git ignore the file, or {_exclude(name)}."
                )


def _refuse_large(sizes: dict[str, int]) -> None:
    large = sorted((name for name in sizes if sizes[name] > MAX_FILE_BYTES), key=lambda name: -sizes[name])
    way_out = (
        "keep data on storage that the cluster reads, let git ignore what no job needs, or add --exclude 'PATTERN'"
    )
    if large:
        named = _named([f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in large])
        raise ConfigError(f"{named} is larger than the {MAX_FILE_BYTES // 2**20} MiB of one file; {way_out}.")
    total = sum(sizes.values())
    if total > MAX_TREE_BYTES:
        most = sorted(sizes, key=lambda name: -sizes[name])
        named = _named([f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in most])
        raise ConfigError(
            f"The folder has {total / 2**20:.0f} MiB to ship, and {MAX_TREE_BYTES // 2**20} MiB is the most; the "
            f"largest are {named}; {way_out}."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
