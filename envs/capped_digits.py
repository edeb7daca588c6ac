"""NSR/CappedDigits: recurring tasks, and a bank with room for half of them."""

from __future__ import annotations

from nsr_gym.envs.digits import DigitsEnv, DigitsVectorEnv, Recipe

RECIPE = Recipe(tasks="permutation", defaults={"capacity": 5})


class CappedDigitsEnv(DigitsEnv):
    """Recurring tasks and a bank that cannot hold them all: what to keep is the decision.

    ## Description

    `CyclicDigitsEnv` with a bank of K = 5 entries for M = 10 tasks in a fixed order. Under the
    retention rule `"lru"` the entry that goes is the one that was used longest ago, which in a
    cycle is the very one that is needed next: a policy that reserves every result finds nothing
    that it can use, ever, and plays as if it had no bank.

    A perfect policy fills the bank with K tasks and then discards: on every return it recalls and
    updates the tasks that it holds and learns the others afresh at full rank without reserving
    them, so that K of M visits are warm. Which tasks it holds hardly matters (all are
    permutations of the same pixels, about as hard); that it does not exchange them does. What is
    left to gain beside that is a visit that begins from another task's entry where that fits
    better than fresh directions do.

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
    differs is `capacity=5`. `retention="pin"` makes the decision for the policy.

    ## Instances and Splits

    Pools of 50 permutations for each split, as in `CyclicDigitsEnv`.
    `NSR/CappedDigitsRecorded-v0` is the same with `dynamics="recorded"`.

    ## Oracle and Baselines

    `oracle` knows the task but reserves everything, and so loses what it needs. The best rule is
    an oracle that keeps the first K tasks; `similarity` fails for the same reason as `oracle`.

    ## Cost

    As `CyclicDigitsEnv`: about 0.5 GFLOP a visit live, some microseconds recorded.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class CappedDigitsVectorEnv(DigitsVectorEnv):
    """`CappedDigitsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
