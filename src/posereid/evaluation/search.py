"""One search of a gallery: from embeddings to every figure of it, with intervals."""

from dataclasses import dataclass
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
from posereid.evaluation.reranking import k_reciprocal
from posereid.evaluation.verification import VerificationResult, verify_pairs


@dataclass(frozen=True, eq=False)
class Search:
    """A search of the gallery for each query: both sides, the distances between them, and what the ranking scored."""

    query: Embeddings
    gallery: Embeddings
    distances: Distances
    result: RankingResult

    @classmethod
    def of(cls, query: Embeddings, gallery: Embeddings, recipe: EvaluationRecipe, *, device: Any = None) -> "Search":
        """Rank the gallery for every query, by the recipe's metric and protocol, in bounded memory.

        Raises :class:`InputError` where a side is empty or no query has a match.
        """
        for name, side in (("query", query), ("gallery", gallery)):
            if not len(side):
                raise InputError(f"There are no {name} crops; evaluation needs both query and gallery.")
        if not recipe.same_camera_rule:
            query, gallery = query.without_cameras(), gallery.without_cameras()
        distances = FeatureDistances.of(query.features, gallery.features, recipe.metric, device=device)
        return cls._ranked(query, gallery, distances, recipe)

    def reranked(self, recipe: EvaluationRecipe, *, device: Any = None, progress: bool = False) -> "Search":
        """The same search by k-reciprocal distances, which are held in memory, (Q, G) float32."""
        settings = recipe.reranking
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
        labels = (query.identities, gallery.identities, query.cameras, gallery.cameras)
        result = rank_gallery(
            distances, *labels, max_rank=max(*RANKS, recipe.max_rank), average_precision=recipe.average_precision
        )
        return cls(query, gallery, distances, result)

    @property
    def labels(self) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray | None, npt.NDArray | None]:
        """Identities of queries and gallery, cameras of queries and gallery: :func:`rank_gallery`'s arguments."""
        return self.query.identities, self.gallery.identities, self.query.cameras, self.gallery.cameras

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
            "average_precision": self.result.average_precision,
            "metric": recipe.metric,
            "same_camera_rule": self.query.cameras is not None,
        }
