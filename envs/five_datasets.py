"""NSR/FiveDatasets: five data sets of ten classes as recurring tasks."""

from __future__ import annotations

from nsr_gym.envs.image_arguments import FiveArguments
from nsr_gym.envs.images import ImageRecipe, ImagesEnv, ImagesVectorEnv

RECIPE = ImageRecipe(images=FiveArguments, defaults={"num_tasks": 5})


class FiveDatasetsEnv(ImagesEnv):
    """5-Datasets with tasks that come back, learned by adapters on a frozen backbone.

    ## Description

    Five data sets of ten classes each (SVHN, MNIST, CIFAR-10, notMNIST, Fashion-MNIST) are the
    M = 5 tasks, visited in C cycles. They resemble each other less than the tasks of
    Split-CIFAR-100, so that what one leaves behind helps another less and harms it more.
    Everything else is as in `SplitCIFAR100Env`: adapters in the last block of a frozen backbone
    (a small residual network by default, or a vision transformer), a head for each entry,
    task-incremental accuracy, and `env.unwrapped.engine.routed(router)` for the
    class-incremental one. After Neural Subspace Reallocation (arXiv 2606.30067), whose abstract
    names this benchmark.

    The data is not part of the package. Where it is missing, the error says how to fetch it;
    `download=True` fetches all but notMNIST.

    ## Action Space

    As in `CyclicDigitsEnv`: `MultiDiscrete([S + 1, Q, 3])`, what to recall, which rank to grant,
    what becomes of the result.

    ## Observation Space

    As in `CyclicDigitsEnv`.

    ## Rewards

    As in `CyclicDigitsEnv`: accuracy on the visited task's test images at the end of the visit,
    or its mean over the learning steps.

    ## Starting State

    An empty memory; the M tasks in an order drawn from the seed.

    ## Episode End

    `terminated` after the last of the V = M C visits; never `truncated` by the environment.

    ## Arguments

    Those of `CyclicDigitsEnv`, less `tasks`, with these other defaults: `num_tasks` 5,
    `cycles` 5, `head` `"trained"`, `capacity` None, `learning_rate` 0.003.
    And:

    | argument | default | meaning |
    |---|---|---|
    | `manifest` | `"five_datasets/l2p_torch"` | composition and preprocessing, also |
    | | | `"five_datasets/l2p_jax"`, `"five_datasets/gpm"` and `"offline5"`; its mean and |
    | | | std are left out, since backbones bring their own |
    | `grouping` | 0 | split train: which shipped pairing of half data sets, 0 to 9 |

    as well as those of `SplitCIFAR100Env` from `train_per_class` on. With the small backbones
    images are 32 x 32: grey ones of 28 x 28 are padded or resized, as the manifest has it, and
    none is cropped. With torchvision's backbones they are 224 x 224 with the manifest's crop.

    ## The Recorded Twin

    `NSR/FiveDatasetsRecorded-v0` is the same with `dynamics="recorded"`, `manifest="offline5"` and
    the `ranks` 2 and 8, see `SplitCIFAR100Env`. Outcomes on the official files do not ship; who
    has them records a table of their own.

    ## Instances and Splits

    Split `"test"`: the five data sets, on their official test images. Split `"train"`: five tasks
    of half the classes of one data set and half of another each, judged on images held out of
    the training images. Validation images are as in `SplitCIFAR100Env`. `"offline5"` has small
    sets and GTSRB in SVHN's place, for measuring without the official files; what is measured on
    it is no result on 5-Datasets.

    The defaults take 500 training and 20 test images of each class; for figures to be reported,
    take all test images: `test_per_class=None`.

    ## Oracle and Baselines

    `oracle` recalls a task's own entry and knows which that is; `similarity` and `trial-loss`
    find it by themselves; `fresh` never recalls. `nsr-gym agents` lists all.

    ## Cost

    That of `SplitCIFAR100Env` for each of the 25 visits.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class FiveDatasetsVectorEnv(ImagesVectorEnv):
    """`FiveDatasetsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
