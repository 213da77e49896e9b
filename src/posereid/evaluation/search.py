"""One search of a gallery: from embeddings to every figure of it, with intervals."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from posereid.config import EvaluationRecipe
from posereid.errors import InputError
from posereid.evaluation.bootstrap import Interval, clustered_mean
from posereid.evaluation.distances import Distances, DistanceTable, FeatureDistances
from posereid.evaluation.embeddings import Embeddings, labels_fingerprint
from posereid.evaluation.headlines import RANKS, headline_values, percent
from posereid.evaluation.protocol import RankingProtocol
from posereid.evaluation.ranking import RankedMatches, RankingResult, rank_gallery, ranked_matches
from posereid.evaluation.reranking import LARGEST_WHOLE, k_reciprocal, rerank_heads
from posereid.evaluation.verification import VerificationResult, verify_pairs

Labels = tuple[npt.NDArray, npt.NDArray, npt.NDArray | None, npt.NDArray | None]

# How far, of a length of 1, features of one crop may lie apart that a network made in two batches.
_SAME_CROP = 1e-4


@dataclass(frozen=True, eq=False)
class Search:
    """A search of the gallery for each query: both sides, the distances between them, and what the ranking scored.

    Without cameras nothing else keeps a query that lies in the gallery too from being its own match, so crops of one
    name, identity and features are taken for one crop and left out of its own ranking.
    """

    query: Embeddings
    gallery: Embeddings
    distances: Distances
    result: RankingResult

    @classmethod
    def of(cls, query: Embeddings, gallery: Embeddings, recipe: EvaluationRecipe, *, device: Any = None) -> "Search":
        """Rank the gallery for every query, by the recipe's metric and protocol, in bounded memory.

        Raises :class:`InputError` where a side is empty or no query has a match.
        """
        distances = FeatureDistances.of(query.features, gallery.features, recipe.metric, device=device)
        require_matches(query, gallery, recipe)
        if not recipe.same_camera_rule:
            query, gallery = query.without_cameras(), gallery.without_cameras()
        return cls._ranked(query, gallery, distances, recipe)

    def reranked(self, recipe: EvaluationRecipe, *, device: Any = None, progress: bool = False) -> "Search":
        """The same search by k-reciprocal distances, (Q, G) float32, or in a large gallery those of the nearest."""
        settings = recipe.reranking
        if len(self.gallery) > LARGEST_WHOLE:
            heads = rerank_heads(
                self.query.features,
                self.gallery.features,
                settings,
                metric=recipe.metric,
                device=device,
                progress=progress,
            )
            return self._ranked(self.query, self.gallery, heads, recipe)
        distances = k_reciprocal(
            self.query.features,
            self.gallery.features,
            settings.k1,
            settings.k2,
            settings.lambda_value,
            metric=recipe.metric,
            device=device,
            progress=progress,
        )
        return self._ranked(self.query, self.gallery, DistanceTable(distances), recipe)

    @classmethod
    def _ranked(
        cls, query: Embeddings, gallery: Embeddings, distances: Distances, recipe: EvaluationRecipe
    ) -> "Search":
        labels = _labels(query, gallery)
        result = rank_gallery(
            distances, *labels, max_rank=max(*RANKS, recipe.max_rank), average_precision=recipe.average_precision
        )
        return cls(query, gallery, distances, result)

    @cached_property
    def labels(self) -> Labels:
        """Identities of queries and gallery, cameras of queries and gallery: :func:`rank_gallery`'s arguments."""
        return _labels(self.query, self.gallery)

    @property
    def fingerprint(self) -> str:
        """Equal for searches of the same labelled crops."""
        return labels_fingerprint(self.query, self.gallery)

    def ranked(self, query_index: int, top: int = 10) -> RankedMatches:
        """The head of one query's ranked list."""
        return ranked_matches(self.distances, *self.labels, query_index=query_index, top=top)

    def verify(self, recipe: EvaluationRecipe, *, progress: bool = False) -> VerificationResult:
        """Same person or not, by distance: thresholds for the recipe's false-match rates."""
        return verify_pairs(
            self.distances,
            *self.labels,
            false_match_rates=recipe.false_match_rates,
            confidence=recipe.confidence,
            resamples=recipe.resamples,
            seed=recipe.resampling_seed,
            progress=progress,
        )

    def chance_rank1(self) -> float:
        """Expected rank-1, in [0, 1], of a random order of the gallery under the same protocol."""
        protocol = RankingProtocol.of((len(self.query), len(self.gallery)), *self.labels)
        shares = []
        for query in range(len(self.query)):
            matches, dropped = protocol.split(query)
            if len(matches):
                shares.append(len(matches) / (len(protocol.kept) - len(dropped)))
        return float(np.mean(shares))

    def intervals(self, recipe: EvaluationRecipe) -> dict[str, Interval]:
        """Every headline in [0, 1], with its interval over the queries' identities."""
        return {
            name: clustered_mean(
                values,
                self.query.identities,
                confidence=recipe.confidence,
                resamples=recipe.resamples,
                seed=recipe.resampling_seed,
            )
            for name, values in headline_values(
                self.result.first_hit_ranks, self.result.average_precisions, self.result.inverse_negative_penalties
            ).items()
        }

    def summary(self, recipe: EvaluationRecipe) -> dict[str, Any]:
        """Headlines in percent with their intervals, chance, and how many queries they are over; ready for JSON."""
        intervals = self.intervals(recipe)
        return {
            **{name: percent(interval.estimate) for name, interval in intervals.items()},
            "intervals": {name: [percent(i.low), percent(i.high)] for name, i in intervals.items()},
            "chance_rank1": percent(self.chance_rank1()),
            "queries": self.result.evaluated_queries,
            "queries_without_match": self.result.unmatched_queries,
            "query_identities": len(np.unique(self.query.identities[self.result.first_hit_ranks > 0])),
            "gallery": len(self.gallery),
            "own_crops_left_out": self._own_crops(),
            "same_features": self._same_features(),
            "average_precision": self.result.average_precision,
            "metric": recipe.metric,
            "same_camera_rule": self.query.cameras is not None,
        }

    def _own_crops(self) -> int:
        """How many queries lie in the gallery too and are left out of their own ranking for that."""
        own = self.labels[2]
        return 0 if self.query.cameras is not None or own is None else int((own >= 0).sum())

    def _same_features(self) -> int:
        """How many queries have a right crop of exactly their features that no stranger has: most likely themselves."""
        dtype = np.result_type(self.query.features, self.gallery.features)
        sides = [np.ascontiguousarray(side.features, dtype) for side in (self.query, self.gallery)]
        rows: dict[bytes, list[int]] = {row.tobytes(): [] for row in sides[0]}
        for position, row in enumerate(sides[1]):
            if (content := row.tobytes()) in rows:
                rows[content].append(position)
        protocol = RankingProtocol.of((len(self.query), len(self.gallery)), *self.labels)
        count = 0
        for query, row in enumerate(sides[0]):
            if equal := rows[row.tobytes()]:
                matches, dropped = (set(protocol.kept[part].tolist()) for part in protocol.split(query))
                count += bool(matches & set(equal)) and set(equal) <= matches | dropped
        return count


def require_matches(query: Embeddings, gallery: Embeddings, recipe: EvaluationRecipe) -> None:
    """Raise :class:`InputError` where a side is empty or no query has a match; features are not looked at."""
    for name, side in (("query", query), ("gallery", gallery)):
        if not len(side):
            raise InputError(f"There are no {name} crops; evaluation needs both query and gallery.")
    if not recipe.same_camera_rule:
        query, gallery = query.without_cameras(), gallery.without_cameras()
    protocol = RankingProtocol.of((len(query), len(gallery)), *_labels(query, gallery))
    if not any(len(protocol.split(number)[0]) for number in range(len(query))):
        off = "--no-same-camera-rule, or evaluation.same_camera_rule: false in a recipe"
        words = {"remedy": f"switch the same-camera rule off ({off})"}
        if query.cameras is None:
            words = {"dropped": "that are the query itself", "remedy": "add other crops of these people to the gallery"}
        raise InputError(protocol.why_unmatched(**words))


def _labels(query: Embeddings, gallery: Embeddings) -> Labels:
    """What :func:`rank_gallery` is given: without cameras, a crop that lies on both sides has one of its own there."""
    if query.cameras is not None or query.names is None or gallery.names is None:
        return query.identities, gallery.identities, query.cameras, gallery.cameras
    shared = set(query.names) & set(gallery.names)
    places: dict[str, list[int]] = {name: [] for name in shared}
    for position, name in enumerate(gallery.names):
        if name in shared:
            places[name].append(position)
    own_of_query, own_of_gallery = np.full(len(query), -1), np.full(len(gallery), -2)
    for number, name in enumerate(query.names):
        features = query.features[number].astype(np.float64)
        for position in places.get(name, ()):
            apart = np.linalg.norm(gallery.features[position] - features)
            # Files of one name in two folders may well be two crops of a person.
            if query.identities[number] == gallery.identities[position] and apart <= _SAME_CROP * np.linalg.norm(
                features
            ):
                own_of_query[number] = own_of_gallery[position] = places[name][0]
    if (own_of_query < 0).all():
        return query.identities, gallery.identities, None, None
    return query.identities, gallery.identities, own_of_query, own_of_gallery
