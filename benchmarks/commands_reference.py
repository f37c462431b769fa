"""Check refinement against Hamiltonian Monte Carlo: make references, and compare with them."""

from __future__ import annotations

import click

from probdeblend.cli.options import FILE, seed_option, weights_option

__all__: list[str] = []  # what is here is used from the command line


@click.command()
@click.option("--count", type=click.IntRange(0), default=12, show_default=True, help="Blends with drizzled noise.")
@click.option("--white", type=click.IntRange(0), default=2, show_default=True, help="Blends with white noise as well.")
@click.option("--draws", type=click.IntRange(150), default=600, show_default=True, help="Draws of each of two chains.")
@click.option("--guide", type=FILE, help="A guide's file, to start from.  [default: moments of the U-Net's light]")
@seed_option
@weights_option
@click.option("--output", type=FILE, default="references", show_default=True, help="Folder to write.")
@click.option(
    "--compare",
    metavar="[FILE]",
    is_flag=False,
    flag_value="",
    help="Compare refinement with the references in a file instead, or with those of the package.",
)
def reference(compare: str | None, **options: object) -> None:
    """Sample the posteriors of blends with the No-U-Turn sampler, or compare refinement with those sampled before.

    Minutes a blend; called again with the same options, it goes on. OUTPUT holds a file a blend and, once all are
    done, reference.h5.

    \b
    Example:
      probdeblend reference --count 12 --output references
      probdeblend reference --compare references/reference.h5
      probdeblend reference --compare
    """  # noqa: D301
    from benchmarks.references import compare_references, make_references, report
    from probdeblend.deblending.weights import load
    from probdeblend.refinement.guides import load_guide

    if compare is not None:
        click.echo(report(compare_references(compare or None, seed=options["seed"])))
        return
    deblender, guide = load(options["weights"]), options["guide"]
    settings = {name: options[name] for name in ("count", "white", "draws", "seed")}
    path = make_references(deblender, options["output"], guide=guide and load_guide(guide, deblender), **settings)
    click.echo(f"written to {path}")
