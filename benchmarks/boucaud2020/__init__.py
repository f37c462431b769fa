"""The experiment of Boucaud et al. (2020, doi:10.1093/mnras/stz3056), to be run again, beside the published numbers."""
