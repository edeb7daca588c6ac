"""NSR/AliasedDigits: the same digits under permuted labels."""

from __future__ import annotations

from nsr_gym.envs.digits import DigitsEnv, DigitsVectorEnv, Recipe

RECIPE = Recipe(tasks="labels", defaults={"view_size": 12})


class AliasedDigitsEnv(DigitsEnv):
    """Recurring tasks that look the same: similarity misleads, the loss of a trial load does not.

    ## Description

    Every task shows the same digits, and gives them other labels. The embedding of a task is made
    from its images alone, so the similarities of all entries are the same but for the sample of
    images, and the order of the view says nothing. The loss on a trial load of an entry does:
    near 0 for the task's own, above that of guessing for the others. The view holds 12 entries,
    so that the own one can be seen wherever it stands.

    A perfect policy recalls the entry with the lowest trial loss where that is clearly below that
    of guessing, and starts afresh otherwise; it updates what it recalled and adds what is new.

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
    differs is `view_size=12`.

    ## Instances and Splits

    Pools of 50 label maps for each split; the images behind them are the same.
    `NSR/AliasedDigitsRecorded-v0` is the same with `dynamics="recorded"`.

    ## Oracle and Baselines

    `oracle` is the perfect policy and `trial-loss` comes close to it; `similarity` warm-starts from
    wrong entries.

    ## Cost

    As `CyclicDigitsEnv`: about 0.5 GFLOP a visit live, some microseconds recorded.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class AliasedDigitsVectorEnv(DigitsVectorEnv):
    """`AliasedDigitsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
