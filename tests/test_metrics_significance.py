from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy import stats

from rankwright.errors import ConfigurationError
from rankwright.metrics.significance import bootstrap_interval, holm, paired_permutation_test


def test_exact_p_is_the_share_of_sign_patterns() -> None:
    differences = np.array([0.5, -0.25, 0.125, 1.0, 0.0])
    seen = abs(differences.mean())
    means = [abs((np.array(signs) * differences).mean()) for signs in product([-1, 1], repeat=5)]
    assert paired_permutation_test(differences) == pytest.approx(np.mean([mean >= seen - 1e-12 for mean in means]))


def test_exact_p_of_one_direction_is_two_patterns_of_all() -> None:
    assert paired_permutation_test([0.1] * 8) == 2 / 2**8
    assert paired_permutation_test([-0.1] * 8) == 2 / 2**8


def test_no_difference_has_p_one() -> None:
    assert paired_permutation_test([0.0] * 50) == 1.0
    assert paired_permutation_test([0.0, 0.5]) == 1.0
    assert paired_permutation_test([1.0, -1.0] * 100) == pytest.approx(1.0)


def test_rounding_does_not_hide_equal_patterns() -> None:
    # 0.1 + 0.2 + 0.3 in another order of summation is not bit-equal; every all-equal-sign pattern must still count.
    assert paired_permutation_test([0.1, 0.2, 0.3, 0.7, 1e-3]) == 2 / 2**5
    assert paired_permutation_test([0.1, 0.2, -0.3]) == 1.0  # 0.1 + 0.2 - 0.3 is 5.6e-17
    assert paired_permutation_test([0.1, 0.2, -0.3] * 20) == 1.0


def test_drawn_p_agrees_with_exact_p_and_is_never_zero() -> None:
    differences = np.random.default_rng(4).normal(0.3, 1.0, 16)
    exact = paired_permutation_test(differences, permutations=2**16)
    drawn = paired_permutation_test(differences, permutations=20_000)
    assert exact != drawn
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))
    assert paired_permutation_test([1.0] * 40, permutations=999) == 1 / 1000


def test_drawn_p_is_close_to_the_t_test_on_many_questions() -> None:
    differences = np.random.default_rng(1).normal(0.03, 0.5, 1200)
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(differences.size))
    t_test = 2 * stats.t.sf(abs(t), differences.size - 1)
    assert paired_permutation_test(differences) == pytest.approx(t_test, abs=0.02)


def test_false_alarms_are_as_rare_as_promised() -> None:
    random = np.random.default_rng(0)
    p_values = [paired_permutation_test(random.normal(0, 1, 30), permutations=400, seed=i) for i in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 400))


def test_bootstrap_interval_of_the_mean() -> None:
    values = np.random.default_rng(2).normal(0.2, 1.0, 400)
    low, high = bootstrap_interval(values, resamples=4000)
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = bootstrap_interval(values, resamples=4000, confidence=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_bootstrap_of_one_value_is_that_value() -> None:
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_seeds_decide_and_chunks_cover_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(0.1, 1.0, 100)
    assert (
        bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    )
    assert paired_permutation_test(values, seed=1) == paired_permutation_test(values, seed=1)
    monkeypatch.setattr("rankwright.metrics.significance._CELLS_AT_ONCE", 1000)
    assert paired_permutation_test([1.0] * 100, permutations=995) == 1 / 996
    assert bootstrap_interval(values, resamples=995)[0] < bootstrap_interval(values, resamples=995)[1]


def test_holm() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([max(2 * 0.03, 1 * 0.04), 3 * 0.01, 2 * 0.03])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("function", [paired_permutation_test, bootstrap_interval])
@pytest.mark.parametrize(
    ("values", "message"), [([], "shape"), ([[1.0]], "shape"), ([1.0, float("nan")], "not finite")]
)
def test_unusable_values_are_refused(function, values, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        function(values)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="0 rounds"):
        paired_permutation_test([1.0], permutations=0)
    with pytest.raises(ConfigurationError, match="Confidence"):
        bootstrap_interval([1.0], confidence=95)


# --- questions in groups


def test_groups_change_their_sign_together() -> None:
    differences, groups = [0.3, 0.1, -0.1, 0.2, 0.5, 0.1], ["a", "a", "b", "b", "c", "d"]
    sums = [0.4, 0.1, 0.5, 0.1]
    assert paired_permutation_test(differences, clusters_Q=groups) == paired_permutation_test(sums)
    alone = list(range(len(differences)))
    assert paired_permutation_test(differences, clusters_Q=alone) == paired_permutation_test(differences)


def test_groups_that_cancel_out_are_no_difference() -> None:
    values, groups = [0.1, 0.2, -0.3] * 14, [i // 3 for i in range(42)]  # 0.1 + 0.2 - 0.3 is 5.6e-17
    assert paired_permutation_test(values, clusters_Q=groups) == 1.0
    assert bootstrap_interval(values, clusters_Q=groups) == (0.0, 0.0)
    small = [1e-3 if i % 3 else 0.0 for i in range(42)]
    assert paired_permutation_test(small, clusters_Q=groups) < 0.001


def test_an_interval_over_groups_is_wider_where_their_questions_are_alike() -> None:
    rng = np.random.default_rng(0)
    of_group = rng.normal(0.1, 1.0, 60)
    values, groups = np.repeat(of_group, 5), np.repeat(np.arange(60), 5)
    low, high = bootstrap_interval(values, clusters_Q=groups, resamples=4_000)
    alone = bootstrap_interval(of_group, resamples=4_000)
    assert (low, high) == pytest.approx(alone, abs=0.03), "five times the same question says no more than once"
    narrow = bootstrap_interval(values, resamples=4_000)
    assert high - low > 2 * (narrow[1] - narrow[0])


def test_groups_of_unlike_size_keep_the_mean_over_questions() -> None:
    values, groups = [1.0] * 90 + [0.0] * 10, [0] * 90 + list(range(1, 11))
    low, high = bootstrap_interval(values, clusters_Q=groups, resamples=4_000)
    assert low == 0.0, "now and then the large group is not drawn"
    assert 0.9 < high < 1
    assert bootstrap_interval(values, clusters_Q=[7] * 100) == (0.9, 0.9)


@pytest.mark.parametrize("measure", [paired_permutation_test, bootstrap_interval])
def test_groups_of_another_number_of_questions_are_refused(measure: Callable[..., object]) -> None:
    with pytest.raises(ConfigurationError, match=r"clusters of shape \(2,\) for 3 questions; give one for each"):
        measure([0.1, 0.2, 0.3], clusters_Q=[1, 1])
