"""A challenge that others start from: sets of blends, the form of a submission, its score, and baselines.

``python -m benchmarks.challenge`` makes the sets, answers them with SEP or with the scene network, and scores
submissions. Nothing is sent anywhere: an organizer hands out the folder of images and keeps that of the truth.
"""

from benchmarks.challenge.metric import score
from benchmarks.challenge.sets import Challenge, Truth, make_challenge, read_challenge, read_truth
from benchmarks.challenge.submission import LEVELS, Answer, Submission, read_submission, write_submission

__all__ = [
    "LEVELS",
    "Answer",
    "Challenge",
    "Submission",
    "Truth",
    "make_challenge",
    "read_challenge",
    "read_submission",
    "read_truth",
    "score",
    "write_submission",
]
