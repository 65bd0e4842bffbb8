"""What a job ships, and what it refuses to ship."""

import os
import shlex
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from genrec.errors import ConfigError
from genrec.launch import working_tree
from genrec.launch.working_tree import collect


def write(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def test_a_git_tree_ships_what_git_tracks_and_does_not_ignore(tmp_path: Path) -> None:
    write(tmp_path, "tracked.py", "new.py", "ignored/x", "runs/a/log", "gone.py", "build/tracked.txt", "sub/.venv/x")
    (tmp_path / ".gitignore").write_text("ignored/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-f", "tracked.py", "gone.py", ".gitignore", "build/tracked.txt")
    (tmp_path / "gone.py").unlink()
    tree = collect(tmp_path)
    assert tree.files == (".gitignore", "build/tracked.txt", "new.py", "tracked.py")
    assert tree.in_git
    assert tree.num_bytes == 3 + len("ignored/\n")


def test_a_folder_below_the_top_of_a_git_tree(tmp_path: Path) -> None:
    write(tmp_path, "outside.py", "project/a.py")
    git(tmp_path, "init", "-q")
    assert collect(tmp_path / "project").files == ("a.py",)


def test_elsewhere_all_but_what_no_job_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write(
        tmp_path,
        "a.py",
        "configs/b.yaml",
        ".venv/x",
        "runs/x",
        "prepared/x",
        "c/__pycache__/x.pyc",
        "genrec.egg-info/x",
    )
    tree = collect(tmp_path)
    assert tree.files == ("a.py", "configs/b.yaml")
    assert not tree.in_git


def test_the_archive_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    write(tmp_path / "project", "a.py", "b/c.sh", text="hello")
    (tmp_path / "project" / "b" / "c.sh").chmod(0o755)
    tree = collect(tmp_path / "project")
    size = tree.write_archive(tmp_path / "one.zip")
    os.utime(tmp_path / "project" / "a.py", (1, 1))
    tree.write_archive(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert size == (tmp_path / "one.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a.py", "b/c.sh"]
        assert archive.read("b/c.sh") == b"hello"
        assert archive.getinfo("b/c.sh").external_attr >> 16 == 0o755


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".env.production",
        "keys/server.pem",
        "id_rsa",
        ".netrc",
        "aws/credentials",
        "auth_token",
        "ID_ED25519",
        "application_default_credentials.json",
        ".ray-token-4711",
        "conf/secrets.yaml",
        "credentials.json",
        "prod.env",
        ".aws/config",
        "deploy/.ssh/config",
        ".kube/config",
        ".docker/config.json",
        "client_secret_4711.json",
    ],
)
def test_secrets_by_name_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.py", name)
    with pytest.raises(ConfigError, match=rf"{name} would be copied .* holds a secret; .*--exclude '{name}'"):
        collect(tmp_path)
    assert name not in collect(tmp_path, exclude=[name]).files


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("a private key", ("-----BEGIN RSA ", "PRIVATE KEY-----")),
        ("an AWS access key", ("AK", "IA" + "A1B2" * 4)),
        ("an AWS secret key", ("aws_secret_", "access_key = " + "aB3/" * 10)),
        ("an AWS secret key", ('"Secret', 'AccessKey": "' + "aB3/" * 10 + '"')),
        ("an Azure storage key", ("Account", "Key=" + "aB" * 43 + "==")),
        ("a GitLab token", ("glp", "at-" + "a1" * 10)),
        ("a GitHub token", ("gh", "p_" + "a1" * 18)),
        ("a Hugging Face token", ("h", "f_" + "a1" * 17)),
        ("an OpenAI or Anthropic key", ("s", "k-ant-" + "a1" * 10)),
        ("a token of PyPI", ("py", "pi-AgE" + "a1" * 30)),
        ("a Weights & Biases key", ("WANDB_API", "_KEY=" + "0a" * 20)),
    ],
)
def test_secrets_by_their_shape_are_refused(tmp_path: Path, what: str, parts: tuple[str, str]) -> None:
    write(tmp_path, "notes.txt", text="first line\n" + "".join(parts) + "\n")
    with pytest.raises(ConfigError, match=rf"notes.txt would be copied .* looks like {what}; take that out"):
        collect(tmp_path)


def test_what_only_looks_a_little_like_a_secret_is_shipped(tmp_path: Path) -> None:
    harmless = (".env.example", "key.pub", "tokenizer.py", ".kube/service.yaml", ".docker/Dockerfile", "aws/config")
    write(tmp_path, *harmless, text="token = os.environ['GITHUB_TOKEN']; hf_hub = 1")
    assert collect(tmp_path).files == tuple(sorted(harmless))


def test_large_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_tree, "MAX_FILE_BYTES", 2**20)
    monkeypatch.setattr(working_tree, "MAX_TREE_BYTES", 3 * 2**20)
    write(tmp_path, "data/log.csv", text="x" * (2 * 2**20))
    with pytest.raises(ConfigError, match=r"data/log.csv \(2 MiB\) is larger than the 1 MiB of one file; .*--exclude"):
        collect(tmp_path)
    write(tmp_path, "1.bin", "2.bin", "3.bin", "4.bin", text="x" * 2**20)
    with pytest.raises(
        ConfigError, match=r"has 4 MiB to ship, and 3 MiB is the most; the largest are 1.bin \(1.0 MiB\)"
    ):
        collect(tmp_path, exclude=["*.csv"])


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "secret.txt", "project/a.py")
    (tmp_path / "project" / "link").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "project" / "inner").symlink_to("a.py")
    with pytest.raises(ConfigError, match="link is a link that leads out of"):
        collect(tmp_path / "project")
    assert collect(tmp_path / "project", exclude=["link"]).files == ("a.py", "inner")


@pytest.mark.parametrize("in_git", [True, False])
def test_links_to_folders_are_refused(tmp_path: Path, in_git: bool) -> None:
    write(tmp_path, "code/a.py")
    (tmp_path / "again").symlink_to("code")
    if in_git:
        git(tmp_path, "init", "-q")
    with pytest.raises(ConfigError, match="again is a link to a folder, which is not shipped"):
        collect(tmp_path)
    assert collect(tmp_path, exclude=["again"]).files == ("code/a.py",)


def test_a_link_does_not_ship_a_secret_under_another_name(tmp_path: Path) -> None:
    write(tmp_path, "a.py", ".env")
    (tmp_path / ".gitignore").write_text(".env\n")
    (tmp_path / "settings.txt").symlink_to(".env")
    git(tmp_path, "init", "-q")
    with pytest.raises(ConfigError, match=r"settings.txt would be copied .* holds a secret"):
        collect(tmp_path)


def test_a_git_tree_that_git_cannot_read_is_not_shipped_with_what_it_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.py", "ignored.txt")
    git(tmp_path, "init", "-q")
    (tmp_path / ".git" / "config").write_text("[broken")
    with pytest.raises(ConfigError, match=rf"git does not say what it ignores in {tmp_path} \(.*config.*\)"):
        collect(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="install git"):
        collect(tmp_path)


def test_nothing_to_ship_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to ship"):
        collect(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        collect(tmp_path / "missing")


@pytest.mark.parametrize("in_git", [True, False])
@pytest.mark.parametrize("name", ["two\nlines.py", os.fsdecode(b"latin-\xe4.py")])
def test_a_name_that_no_archive_carries_is_refused(tmp_path: Path, name: str, in_git: bool) -> None:
    write(tmp_path, "a.py", "größe.py", name)
    if in_git:
        git(tmp_path, "init", "-q")
    with pytest.raises(ConfigError, match="an archive does not carry that") as raised:
        collect(tmp_path)
    said = str(raised.value)
    assert said.isascii() and "\n" not in said
    pattern = said.rpartition("--exclude '")[2].removesuffix("'.")
    tree = collect(tmp_path, exclude=[pattern])
    assert tree.files == ("a.py", "größe.py")
    assert tree.write_archive(tmp_path / "archive") > 0


def test_what_is_said_of_a_name_leaves_that_file_out(tmp_path: Path) -> None:
    """Brackets are a pattern, and a quote ends a word of the shell."""
    write(tmp_path, "a.py", "it's [1].pem")
    with pytest.raises(ConfigError, match="holds a secret") as raised:
        collect(tmp_path)
    option, word = shlex.split(str(raised.value).partition(" or add ")[2].removesuffix("."))
    assert (option, collect(tmp_path, exclude=[word]).files) == ("--exclude", ("a.py",))


def test_links_that_lead_nowhere_are_not_shipped(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    for link, target in (("one", "two"), ("two", "one"), ("gone", "missing.py")):
        (tmp_path / link).symlink_to(target)
    assert collect(tmp_path).files == ("a.py",)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.py", "closed/b.py")
    read, scan = Path.read_bytes, os.scandir

    def denied(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:  # root may read everything
        patched.setattr(Path, "read_bytes", lambda path: denied(path) if path.name == "b.py" else read(path))
        with pytest.raises(
            ConfigError, match=r"closed/b.py cannot be read \(Permission denied\).*--exclude 'closed/b.py'"
        ):
            collect(tmp_path)
        assert collect(tmp_path, exclude=["b.py"]).files == ("a.py",)
    monkeypatch.setattr(os, "scandir", lambda path: denied(path) if str(path).endswith("closed") else scan(path))
    with pytest.raises(ConfigError, match=r"closed cannot be listed \(Permission denied\)"):
        collect(tmp_path)
