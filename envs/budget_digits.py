"""NSR/BudgetDigits: easy and hard tasks, and a bank with few bytes."""

from __future__ import annotations

from nsr_gym.envs.digits import DigitsEnv, DigitsVectorEnv, Recipe
from nsr_gym.envs.mixed import BUDGET_BYTES_PER_TASK

RECIPE = Recipe(tasks="partial", defaults={"capacity_bytes": 10 * BUDGET_BYTES_PER_TASK})


class BudgetDigitsEnv(DigitsEnv):
    """Tasks of different difficulty and a bank with few bytes: which rank to spend on which task.

    ## Description

    A task permutes some of the 64 pixels: 4 or 12 (easy: the bare backbone does most of it) or
    all 64 (hard: it is worth no more than guessing). An entry of rank r takes 2,572 r + 256 bytes,
    and the bank holds 85,000: room for ten entries with 32 directions between them. All tasks at
    the full rank of 8 would take 80; when the budget is exceeded, the entries that were used
    longest ago go.

    A perfect policy spends its directions where they buy accuracy: rank 1 (or no entry at all) for
    easy tasks, rank 4 or more for hard ones, and never so many that an entry is lost which still
    pays. The loss of the bare backbone shows how hard a task is before anything is spent on it.
    Mean reward on recorded outcomes of the train split, tasks known: the same rank for all, 0.777
    at 1, 0.858 at 2, 0.809 at 4 (entries are lost), 0.860 at 8 (nothing is ever recalled); rank 1
    for easy and 4 for hard tasks 0.883.

    ## Action Space

    As in `CyclicDigitsEnv`: recall, rank and reserve.

    ## Observation Space

    As in `CyclicDigitsEnv`.

    ## Rewards

    As in `CyclicDigitsEnv`: accuracy on the visited task at the end of the visit
    (`reward="post_task"`) or over its learning steps (`"online"`).

    ## Starting State

    An empty bank; the M tasks are drawn from the pool of the split without replacement.

    ## Episode End

    `terminated` after the last of the V = M C visits; never `truncated` by the environment.

    ## Arguments

    Those of `CyclicDigitsEnv` (without `tasks`), where they are described; the default that
    differs is `capacity_bytes=85000`, made for `num_tasks=10`.

    ## Instances and Splits

    Pools of 50 tasks for each split; every fourth permutes 4, every fourth 12 of the pixels.
    `NSR/BudgetDigitsRecorded-v0` is the same with `dynamics="recorded"`.

    ## Oracle and Baselines

    `oracle` knows the task but spends the full rank on each, and so loses what it needs.
    `oracle-pin` keeps the first few at full rank (0.882); `oracle-thrifty` does that with ranks by
    difficulty (0.892).

    ## Cost

    As `CyclicDigitsEnv`: about 0.5 GFLOP a visit live, some microseconds recorded.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class BudgetDigitsVectorEnv(DigitsVectorEnv):
    """`BudgetDigitsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
