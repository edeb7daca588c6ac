"""NSR/RelatedDigits: rotated digits, tasks that help each other."""

from __future__ import annotations

from nsr_gym.envs.digits import DigitsEnv, DigitsVectorEnv, Recipe

RECIPE = Recipe(tasks="rotation")


class RelatedDigitsEnv(DigitsEnv):
    """Related tasks: a warm start from another task helps with a new one.

    ## Description

    Every task turns the digits by an angle of its own, between 2.5 and 357.5 degrees. What was
    learned at one angle is of use at near ones, so that the question is not only which entry is
    the task's own, but which other entry is near enough to start a new task from, and whether to
    update that entry or to add one.

    A perfect policy recalls the task's own entry on a return; it starts a new task from the entry
    with the lowest trial loss where that is below what fresh directions reach soon, and adds the
    result as an entry of its own (reserve 2), so that nothing is overwritten.

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

    Those of `CyclicDigitsEnv` (without `tasks`), where they are described, with the same
    defaults.

    ## Instances and Splits

    Pools of 36 angles for each split, interleaved and 5 degrees apart.
    `NSR/RelatedDigitsRecorded-v0` is the same with `dynamics="recorded"`.

    ## Oracle and Baselines

    `oracle` recalls own entries and starts new tasks afresh: it can be beaten in the first cycle.
    `similarity` mixes up near angles.

    ## Cost

    As `CyclicDigitsEnv`: about 0.5 GFLOP a visit live, some microseconds recorded.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class RelatedDigitsVectorEnv(DigitsVectorEnv):
    """`RelatedDigitsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
