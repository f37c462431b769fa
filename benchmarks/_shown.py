"""What a model card shows of the tables of benchmarks, and what their columns mean."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURES", "SHOWN", "Shown"]


@dataclass(frozen=True)
class Shown:
    """What is shown of a benchmark's table: columns in some of its rows, and values of its metadata.

    `data` are the images, `rows` a column with the values that are shown, `network` is whether numbers depend on the
    weights, and `needs` what the command cannot do without.
    """

    benchmark: str
    title: str
    data: str
    columns: tuple[str, ...]
    meta: tuple[str, ...] = ()
    rows: tuple[str, tuple[str, ...]] | None = None
    network: bool = True
    needs: str = ""


COVERAGE = ("coverage_68", "coverage_95", "joint_68", "total_68")
SCATTER = ("z_sd", "z_sd_low", "z_sd_high", "within_68", "within_95")
ISOLATED = tuple(
    f"{pair}, {value}"
    for pair in ("network - truth", "SEP - truth", "network - SEP")
    for value in ("median", "scatter")
)
CLUSTERED = "simulated groups of sources of all types, by the cameras of the training"
SHOWN = (
    Shown(
        "pairs",
        "Pairs",
        "simulated pairs of the published population of Boucaud et al. (2020) in CANDELS F160W",
        ("method", "sources", "detected", "mape", "bias_mag", "nmad_mag", *COVERAGE),
    ),
    Shown(
        "crowding",
        "Any number of sources",
        CLUSTERED,
        ("number", "sources", "nmad_mag", *COVERAGE, "found", "found_coverage_68", "same_nmad_mag", "sep_nmad_mag"),
    ),
    Shown(
        "psfs",
        "PSF and noise",
        "simulated groups of two and four sources, through PSFs of several widths, with white and drizzled noise",
        ("fwhm", "noise", "number", "sources", "nmad_mag", *COVERAGE),
    ),
    Shown(
        "bands",
        "Colors",
        "simulated groups in three bands, deblended together and one by one",
        ("number", "bands", "sources", "scatter", "gain", "coverage_68", "coverage_95"),
    ),
    Shown(
        "detections",
        "Detection",
        "simulated groups of 0 to 14 sources, faint ones among them, by the cameras of the training",
        (
            *("feature", "low", "high", "sources", "completeness", "purity", "completeness_equal"),
            *("completeness_sep", "purity_sep", "stars_right", "galaxies_right"),
        ),
        ("existence_ece",),
    ),
    Shown(
        "real_galaxies",
        "Real galaxies",
        "groups of isolated real galaxies, which are split into folds",
        (
            *("weights", "number", "sources", "galaxies", "nmad_mag", "of_sep", "wrong", "coverage_68", "low_68"),
            *("high_68", "coverage_95", "joint_68", "total_68", "excess", "caught", "false_flags"),
        ),
        needs=" --library FOLDER",
    ),
    Shown(
        "consistency",
        "Repeats and blending",
        "simulated groups, real blends of HSC, and cutouts of CANDELS and of the eXtreme Deep Field, without truth",
        ("test", "images", "case", "bin", "values", *SCATTER),
        rows=("test", ("repeats", "blending excess")),
    ),
    Shown(
        "consistency",
        "Bands that were left out",
        "real blends of HSC, without truth",
        ("images", "case", "values", "chi2", "chi2_low", "chi2_high", "network_better"),
        rows=("test", ("held-out band",)),
    ),
    Shown(
        "dropout",
        "Between dropout passes",
        "simulated pairs of the published population, as they are and changed as no camera of the training does",
        ("images", "within", "between", "share", "mask", "ratio"),
    ),
    Shown(
        "field",
        "A field",
        "simulated fields of CANDELS F160W, whole",
        ("side", "tile", "sources", "found", "cpu_per_megapixel", "memory", "same", "worst"),
        ("isolated galaxies", *ISOLATED),
    ),
    Shown(
        "times",
        "Time",
        "simulated groups in 128 x 128 pixels of CANDELS F160W, on one core",
        ("sources", "method", "seconds", "over_network"),
    ),
    Shown(
        "irregularity",
        "How irregular simulated galaxies are",
        "single galaxies, real ones and those of the simulator",
        ("measure", "real", "simulated", "simulated: distance"),
        ("galaxies, real", "galaxies, simulated", "distance by chance, 95 %"),
        network=False,
    ),
)
MEASURES = {
    "weights": "`given`: not calibrated; `heads`: trained further, and `calibrated`: calibrated, on real galaxies",
    "number": "sources per scene",
    "sources, galaxies": "how many count; in a field and where times are measured, how many there are",
    "feature": "brightness: Kron flux over the sky noise of a pixel; contested: fraction of light that others share",
    "detected, found": "sources that are found: a fraction, or in a field their number",
    "mape": "mean absolute error of the flux, in percent of the true one",
    "bias_mag": "median error in magnitudes, positive where fluxes are too faint",
    "nmad_mag": "robust scatter of errors in magnitudes, 1.48 times the median absolute deviation",
    "coverage_68, coverage_95": "fraction of the sources whose true flux is in the 68 % and in the 95 % interval",
    "low_68, high_68": "68 % band of `coverage_68` by bootstrap over galaxies",
    "joint_68": "fraction of the groups whose true fluxes are in the joint 68 % region",
    "total_68": "fraction of the groups whose true total flux is in its 68 % interval",
    "found_coverage_68": "`coverage_68` of the sources that the network finds itself",
    "same_nmad_mag, sep_nmad_mag": "scatter of the sources that SEP finds: the network's, and SEP's",
    "of_sep": "scatter of the sources that SEP finds",
    "scatter, gain": "scatter of colors in magnitudes, and how many times larger it is with bands one by one",
    "completeness, purity": "fraction of the true sources that are found, and of the sources found that are real",
    "completeness_equal": "completeness at SEP's purity",
    "completeness_sep, purity_sep": "the same of SEP",
    "stars_right, galaxies_right": "fraction of stars and of galaxies that the class probability tells right",
    "existence_ece": "expected calibration error of the probability that a source exists",
    "wrong": "fraction of the fluxes that are off by more than 0.75 magnitudes",
    "excess": "scatter of the difference between a source in its group and alone, over the error of the difference",
    "caught, false_flags": "fraction of errors beyond three sigma that have a flag, and of all others",
    "z_sd, z_sd_low, z_sd_high": "scatter of differences over their errors, with a 68 % band by bootstrap",
    "within_68, within_95": "fraction of such differences within 1 and 1.96 sigma",
    "chi2, chi2_low, chi2_high": "chi-square over its expectation in the left-out band, median, with a 68 % band",
    "network_better": "fraction of the blends in which the network predicts the left-out band better",
    "within, between": "standard deviation of ln flux within and between dropout passes, medians",
    "share, ratio": "part of the variance that lies between passes; `between` over that of unchanged pairs",
    "mask": "spread of masks over passes, where they are undecided",
    "cpu_per_megapixel, memory": "CPU seconds per million pixels, and peak memory in GB",
    "same, worst": "fraction of sources that other tiles find too, and largest change of a flux in sigma",
    "seconds, over_network": "CPU seconds per scene, and in units of the network's",
    "isolated galaxies": "how many, and how their Kron fluxes differ, in units of the quoted errors",
    "simulated: distance": "Kolmogorov-Smirnov distance between simulated and real galaxies",
}
