"""Number counts and flux ratios of a population of blends, recovered from posteriors made under another one."""
