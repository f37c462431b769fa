"""The validation report: the network beside SEP and the published networks, in one page and one file of numbers."""
