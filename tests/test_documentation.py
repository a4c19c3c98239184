"""Every Python block of README and documentation runs; README has its two shell blocks."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python *(?P<flags>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    x64 = jax.config.jax_enable_x64
    namespace = {"__name__": "documentation"}
    try:
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            # blank lines in front, so that a traceback shows the line of the page
            code = compile("\n" * line + match["code"], str(page), "exec")
            if "no-run" not in match["flags"]:
                exec(code, namespace)
    finally:
        jax.config.update("jax_enable_x64", x64)


@pytest.mark.parametrize("block", ["run", "test"])
def test_readme_has_one_block(block):
    readme = (ROOT / "README.md").read_text()
    assert len(re.findall(rf"^```sh {block}$", readme, flags=re.M)) == 1
