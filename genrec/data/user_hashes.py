"""A hash of each user, for what depends on nothing but who a user is: samples, and rows of a small table."""

import numpy as np
import numpy.typing as npt


def user_hashes(users: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The splitmix64 finaliser of each user index (Steele, Lea and Flood, 2014), shifted by its constant."""
    mixed = users.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
