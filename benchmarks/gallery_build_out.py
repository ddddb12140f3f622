"""Pages of the catalog's sites: docs/gallery/build-out-SITE.html.

.venv/bin/python benchmarks/gallery_build_out.py
"""

from __future__ import annotations

from common import ROOT

from colossus.catalog.models import load_model
from colossus.catalog.scenarios import load_scenario
from colossus.catalog.sites import load_site, site_names
from colossus.estimate.flop import train_flop
from colossus.report.build_out_page import page
from colossus.twin.build_out import Asked, play

# The job whose progress each page shows: its model, and the tokens that were published of it; None: progress alone, where those were trained in no time.
JOBS = {"colossus-1": ("llama-3.1-405b", 15.6e12), "colossus-2": ("llama-3.1-405b", None), "social-llm-10k": ("llama-2-70b", 2e12)}
SEQUENCE_TOKENS = 4096


def main() -> None:
    folder = ROOT / "docs" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for name in site_names():
        model, tokens = JOBS[name]
        flop = train_flop(load_model(model), 1, SEQUENCE_TOKENS).model_flop / SEQUENCE_TOKENS
        found = play(load_site(name), load_scenario(), job=Asked(model=model, flop_per_token=flop, total_tokens=tokens))
        path = folder / f"build-out-{name}.html"
        path.write_text(page(found), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
