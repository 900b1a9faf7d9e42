"""Numbers of a study's variants: means and standard deviations over seeds, sums over tasks.

What is combined over tasks is combined per seed first, over the seeds that have all of the tasks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from decathlon import SOURCE
from reporting.runs import Variant
from reporting.study import Study

Scores = dict[str, dict[int, float]]  # task -> seed -> number


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and sample standard deviation (n - 1; None for one seed)."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None of no values."""
        values = list(values)
        if not values:
            return None
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


def over_tasks(
    scores: Scores, tasks: Sequence[str], combine: Callable[[Iterable[float]], float] = fmean
) -> Spread | None:
    """`combine` of each seed's numbers on `tasks`, over the seeds that have all of them."""
    if not tasks:
        return None
    seeds = set.intersection(*(set(scores.get(task, {})) for task in tasks))
    return Spread.of(combine([scores[task][seed] for task in tasks]) for seed in sorted(seeds))


def shared_tasks(study: Study, all_scores: Iterable[Scores]) -> list[str]:
    """The tasks that each of them has, in the order of the study's tables."""
    all_scores = list(all_scores)
    return [task for task in study.columns if all(scores.get(task) for scores in all_scores)]


# Numbers by task and seed.


def numbers(study: Study, variant: Variant, name: str) -> Scores:
    """One of Run.cost or Run.tested, of the variant's runs that have it."""
    found = {}
    for task in study.tasks:
        runs = study.of(variant, task)
        known = {r.settings.seed: r.cost | r.tested.get(variant.policy, {}) for r in runs}
        found[task] = {seed: fields[name] for seed, fields in known.items() if name in fields}
    return found


def val_scores(study: Study) -> dict[Variant, Scores]:
    """Accuracy on val after the last epoch in percent, the shared source network's included."""
    return {
        variant: _with_source(numbers(study, variant, "accuracy"), study.source_accuracies)
        for variant in study.variants
    }


def test_scores(study: Study) -> dict[Variant, Scores]:
    """Accuracy on test in percent, of the variants whose figures of score.py lie with the runs."""
    sources = [run.test["accuracy"] for run in study.sources if run.test]
    found = {}
    for run in sorted(study.runs, key=lambda run: run.scored_variant.order):
        if run.test:
            scores = found.setdefault(run.scored_variant, {})
            scores.setdefault(run.task, {})[run.settings.seed] = run.test["accuracy"]
    return {variant: _with_source(scores, sources) for variant, scores in found.items()}


def _with_source(scores: Scores, sources: Sequence[float]) -> Scores:
    """With the source's first figure for every seed of the variant: it is one network."""
    if not sources:
        return scores
    seeds = sorted({seed for found in scores.values() for seed in found})
    return {SOURCE.name: dict.fromkeys(seeds, sources[0]), **scores}


def total_stored(study: Study, variant: Variant, tasks: Sequence[str]) -> Spread | None:
    """Millions of parameters for all `tasks` together, the source network once."""
    source = study.source.cost["parameters"] if study.source else 0.0
    stored = numbers(study, variant, "stored")
    return over_tasks(stored, tasks, lambda millions: source + sum(millions))


def mean_recalls(study: Study, variant: Variant, task: str) -> list[float | None]:
    """By class the mean recall in percent; None where val has no picture of it."""
    seeds = numbers(study, variant, "recalls")[task].values()
    of_classes = zip(*seeds, strict=True)
    known = ([recall for recall in recalls if recall is not None] for recalls in of_classes)
    return [fmean(recalls) if recalls else None for recalls in known]


def mean_shares(study: Study, variant: Variant, name: str) -> dict[str, list[float]]:
    """By task the "block shares" or "count shares" of Run.tested, position by position the mean."""
    found = numbers(study, variant, name)
    return {
        task: [fmean(values) for values in zip(*seeds.values(), strict=True)]
        for task, seeds in found.items()
        if seeds
    }
