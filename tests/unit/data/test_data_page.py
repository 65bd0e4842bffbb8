"""Every YAML block of docs/data.md is a `data` section that genrec accepts, and together they show every source."""

import re
from pathlib import Path
from typing import get_args

import yaml

from genrec.config import DataConfig, Source
from genrec.data.log_parts import MALFORMED_REASONS
from genrec.data.validate import REASONS

PAGE = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")


def test_snippets() -> None:
    sections = [yaml.safe_load(block)["data"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    shown = {type(DataConfig.model_validate(section).source) for section in sections}
    assert shown == set(get_args(get_args(Source)[0]))


def test_every_reason_is_explained() -> None:
    assert len(REASONS) > 3 and all(reason in PAGE for reason in (*REASONS, *MALFORMED_REASONS))
