"""The generative model as a Pyro program, and answers under it."""
