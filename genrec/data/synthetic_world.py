"""The world of the synthetic log: catalogue, tastes and the probabilities of what is played next.

What is played next depends on the history alone, never on something a model cannot see:

    at the start of a session, and inside one, each with its own three shares:
      repeat     one of the user's last REPEAT_WINDOW events, each equally likely
      continue   the rest of the collection (album, podcast, audiobook, series): the next item in order with the
                 collection's `order`, otherwise any item of the collection
      explore    a genre of the user's taste, a collection of that genre by its popularity this week, its first item
                 or any of its items

The taste is hidden and changes now and then, but it is one of few, so its probability given the history is exact
(`synthetic_best.py`). Skips, playing times and pauses depend on the item alone and tell nothing more.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.config import SyntheticSource

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LOG_START_S = 1_704_067_200  # 2024-01-01 00:00 UTC
JOIN_SPAN_S = 28 * 86_400  # users have their first event in the first four weeks
WEEK_S = 7 * 86_400

SESSION_START = 1 / 8  # the probability that the next event opens a session: 8 events a session on average
SESSION_GAP_MIN_S = 4 * 3_600  # longer than any gap inside a session, so sessions can be told from the times
SESSION_GAP_MEAN_S = 16 * 3_600  # on top of the shortest gap
PAUSE_MEAN_S, PAUSE_MAX_S = 8.0, 600.0

REPEAT_WINDOW = 8
REPEAT_INSIDE, CONTINUE_INSIDE = 0.12, 0.70
REPEAT_AT_START, CONTINUE_AT_START = 0.20, 0.25
FIRST_ITEM = 0.5  # exploring opens a collection at its first item this often, otherwise anywhere

MAX_GENRES = 10
MAIN_GENRE, SECOND_GENRE = 0.6, 0.3  # shares of a taste; the rest is spread over all genres
TASTE_SWITCH = 0.1  # the probability that a session starts with a newly drawn taste: tastes drift

POPULARITY_EXPONENT = 1.0  # weight of the collection of rank r is r ** -exponent (Zipf)
SEASON_WEEKS = 26
SEASON_AMPLITUDE = 0.7  # a collection's weight swings by a factor of e ** 0.7 up and down: popularity drifts


@dataclass(frozen=True, slots=True)
class ItemType:
    """One kind of content: a share of the collections, and how its items are played."""

    name: str
    collection: str
    share: float
    size: int
    order: float
    shortest_s: int
    longest_s: int
    skip: float


ITEM_TYPES = (
    ItemType("track", "Album", 0.6, 10, 0.60, 120, 300, 0.30),
    ItemType("episode", "Podcast", 0.2, 10, 0.90, 900, 2_700, 0.12),
    ItemType("audiobook", "Audiobook", 0.1, 12, 0.95, 600, 1_800, 0.05),
    ItemType("video", "Series", 0.1, 8, 0.75, 240, 900, 0.20),
)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that the log is drawn from; memory grows with the number of items alone.

    Items and collections are numbered from 0; a collection's items follow one another, and so do a genre's
    collections.

    collection_of   [num_items]                       the item's collection
    follows         [num_items]                       the next item in order; a last item leads to the next collection
    duration_s      [num_items]                       playing time
    skip            [num_items]                       probability of a skip
    first, size     [num_collections]                 the collection's items are first .. first + size - 1
    order           [num_collections]                 how often continuing takes the next item in order
    item_type       [num_collections]                 index into ITEM_TYPES
    genre_of        [num_collections]                 the collection's genre
    popularity      [SEASON_WEEKS, num_collections]   probability within the genre, by week
    tastes          [num_tastes, num_genres]          shares of the genres
    """

    collection_of: Integers
    follows: Integers
    duration_s: Floats
    skip: Floats
    first: Integers
    size: Integers
    order: Floats
    item_type: Integers
    genre_of: Integers
    popularity: Floats
    tastes: Floats

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return len(self.collection_of)

    @property
    def num_genres(self) -> int:
        """Genres, at most MAX_GENRES."""
        return int(self.tastes.shape[1])

    def explore_probability(self, week: Integers, item: Integers) -> Floats:
        """Probability of `item` when its own genre is explored in `week`; the arguments broadcast."""
        collection = self.collection_of[item]
        within = (1 - FIRST_ITEM) / self.size[collection] + FIRST_ITEM * (item == self.first[collection])
        result: Floats = self.popularity[week, collection] * within
        return result


def week_of(time_s: Integers) -> Integers:
    """Week of the season, 0 to SEASON_WEEKS - 1."""
    return (time_s - LOG_START_S) // WEEK_S % SEASON_WEEKS


def build_world(source: SyntheticSource) -> World:
    """The world of a source: a pure function of its seed and number of items."""
    rng = np.random.default_rng([source.seed, 0])
    item_type, size = _draw_collections(rng, source.num_items)
    num_collections = len(size)
    num_genres = max(2, min(MAX_GENRES, num_collections // 4))
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    collection_of = np.repeat(np.arange(num_collections), size)
    genre_of = np.arange(num_collections) * num_genres // num_collections
    lengths = np.array([(t.shortest_s, t.longest_s) for t in ITEM_TYPES])[item_type[collection_of]]
    item_skip = np.array([t.skip for t in ITEM_TYPES])[item_type[collection_of]]
    return World(
        collection_of=collection_of,
        follows=_follows(first, size, genre_of),
        duration_s=np.floor(lengths[:, 0] + rng.random(source.num_items) * (lengths[:, 1] - lengths[:, 0])),
        skip=item_skip * (0.5 + rng.random(source.num_items)),
        first=first,
        size=size,
        order=np.array([t.order for t in ITEM_TYPES])[item_type],
        item_type=item_type,
        genre_of=genre_of,
        popularity=_popularity(rng, genre_of),
        tastes=_tastes(num_genres),
    )


def _draw_collections(rng: np.random.Generator, num_items: int) -> tuple[Integers, Integers]:
    """Type and size of every collection; the last one is cut so that the sizes add up to `num_items`."""
    sizes = np.array([t.size for t in ITEM_TYPES])
    most = num_items // sizes.min() + 1
    item_type = rng.choice(len(ITEM_TYPES), size=most, p=[t.share for t in ITEM_TYPES])
    total = np.cumsum(sizes[item_type])
    count = int(np.searchsorted(total, num_items)) + 1
    size = sizes[item_type[:count]]
    size[-1] -= total[count - 1] - num_items
    return item_type[:count], size


def _follows(first: Integers, size: Integers, genre_of: Integers) -> Integers:
    follows = np.arange(1, int(size.sum()) + 1)
    last_of_genre = np.append(genre_of[1:] != genre_of[:-1], True)
    genre_start = first[np.searchsorted(genre_of, genre_of[last_of_genre])]
    follows[(first + size - 1)[last_of_genre]] = genre_start
    return follows


def _popularity(rng: np.random.Generator, genre_of: Integers) -> Floats:
    num_collections = len(genre_of)
    rank = 1 + rng.permutation(num_collections)
    phase = rng.random(num_collections)
    week = np.arange(SEASON_WEEKS)[:, None]
    weight = rank**-POPULARITY_EXPONENT * np.exp(SEASON_AMPLITUDE * np.sin(2 * np.pi * (week / SEASON_WEEKS + phase)))
    starts = np.flatnonzero(np.append(True, genre_of[1:] != genre_of[:-1]))
    totals = np.add.reduceat(weight, starts, axis=1)  # [SEASON_WEEKS, num_genres]
    result: Floats = weight / totals[:, genre_of]
    return result


def _tastes(num_genres: int) -> Floats:
    """Every ordered choice of a main genre and one of its two neighbours as the second."""
    main = np.repeat(np.arange(num_genres), 2)
    second = (main + np.tile([1, 2], num_genres)) % num_genres
    tastes = np.full((len(main), num_genres), (1 - MAIN_GENRE - SECOND_GENRE) / num_genres)
    tastes[np.arange(len(main)), main] += MAIN_GENRE
    tastes[np.arange(len(main)), second] += SECOND_GENRE
    return tastes
