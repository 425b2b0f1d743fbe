"""Makes the README's pictures from the model that ships: `make pictures`. Needs chromium (Debian's package).

    .venv/bin/python notebooks/make_pictures.py [FOLDER]
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lenscpp as lens

CLEAN = "When John and Mary went to the store, John gave the bag to"
CORRUPTED = "When John and Mary went to the store, Mary gave the bag to"


def figures():
    model = lens.HookedTransformer.from_pretrained("tiny-ioi")
    _, cache = model.run_with_cache(CLEAN)
    metric = lens.LogitDiff(" Mary", " John")
    yield "logit_lens", lens.logit_lens(cache).plot()
    yield "attribution", lens.direct_logit_attribution(cache, " Mary", " John", unit="head").plot()
    yield "attention", lens.plot_attention(cache, 1)
    for site, over in (("resid_pre", ("layer", "pos")), ("z", ("layer", "head"))):
        grid = lens.patching.patch_grid(model, CLEAN, CORRUPTED, site, over=over, metric=metric)
        yield f"patch_{site}", grid.plot()


def chromium():
    """The browser's path, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def screenshot(figure, path):
    """As the browser draws it, at its own size."""
    if chromium() is None:
        sys.exit("chromium was not found: apt-get install chromium")
    width, height = int(figure.layout.width or 800), int(figure.layout.height or 450)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.update_layout(margin_b=max(figure.layout.margin.b or 0, 20))
        page.write_text(f"<style>body {{margin: 0}}</style>{figure.to_html(full_html=False, include_plotlyjs=True, config={'displayModeBar': False})}", encoding="utf-8")
        command = [chromium(), "--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000", f"--window-size={width},{height}"]
        subprocess.run([*command, f"--screenshot={path}", page.as_uri()], check=True, capture_output=True, timeout=120)
    print(f"{path.name}: {width} x {height}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures"
    target.mkdir(exist_ok=True)
    for name, figure in figures():
        screenshot(figure, target / f"{name}.png")
