"""NSR/SplitCIFAR100: the classes of CIFAR-100 as recurring tasks."""

from __future__ import annotations

from nsr_gym.envs.image_arguments import CifarArguments
from nsr_gym.envs.images import ImageRecipe, ImagesEnv, ImagesVectorEnv

RECIPE = ImageRecipe(images=CifarArguments)


class SplitCIFAR100Env(ImagesEnv):
    """Split-CIFAR-100 with tasks that come back, learned by adapters on a frozen backbone.

    ## Description

    The 100 classes are dealt to M tasks (10 of 10 classes by default; also 5 and 20), which are
    visited in C cycles. At each visit the policy decides from which entry of the
    TaskKnowledgeBank the adapter is warm-started, which rank it is granted, and what becomes of
    the result. Adapters sit in the last block of a frozen backbone (a small residual network by
    default, or a vision transformer); every entry brings a head of its own for its task's
    classes, trained from zero with the adapter and kept with it. After Neural Subspace
    Reallocation (arXiv 2606.30067), whose abstract names this benchmark.

    Evaluation is task incremental: the visited task is known to the head in use. For the
    class-incremental figure, `env.unwrapped.engine.routed(router)` has a router name the entry
    that answers each test image, one image at a time. Neither depends on the order of the test
    images or on how they are batched.

    The data is not part of the package. Where it is missing, the error says how to fetch it, or
    `download=True` fetches it; `root` or the environment variable `NSR_GYM_DATA` say where it
    lies.

    ## Action Space

    As in `CyclicDigitsEnv`: `MultiDiscrete([S + 1, Q, 3])`, what to recall, which rank to grant,
    what becomes of the result.

    ## Observation Space

    As in `CyclicDigitsEnv`. Losses are scaled by the logarithm of a task's number of classes.

    ## Rewards

    As in `CyclicDigitsEnv`: accuracy on the visited task's test images at the end of the visit,
    or its mean over the learning steps.

    ## Starting State

    An empty memory; the M tasks in an order drawn from the seed. Which classes make a task
    follows from `order`, not from the seed.

    ## Episode End

    `terminated` after the last of the V = M C visits; never `truncated` by the environment.

    ## Arguments

    Those of `CyclicDigitsEnv`, less `tasks`, with these other defaults: `cycles` 5,
    `head` `"trained"`, `capacity` None, `learning_rate` 0.003. And:

    | argument | default | meaning |
    |---|---|---|
    | `order` | `"natural"` | of the classes: also `"seed-1993"`, `"random"`, all 100 labels |
    | `order_seed` | None | of order `"random"`, 0 to 9 |
    | `division` | None | tasks the classes are dealt to: 5, 10, 20; None: least with `num_tasks` |
    | `grouping` | 0 | split train: the first shipped grouping of the classes, 0 to 9 |
    | `groupings` | 1 | split train: how many of them make the pool |
    | `train_per_class` | 500 | training images of each class at most; None: all |
    | `test_per_class` | 20 | the same for test images; None: all |
    | `val_per_class` | 20 | training images of each class held out for decisions; 0: none |
    | `evaluate` | None | `"test"` or `"validation"`; None: as the split has it |
    | `backbone` | `"resnet-small-32"` | or `"vit-small-32"`, `"vit_b_16"`, `"vit_b_32"`, |
    | | | `"resnet18"`, `"resnet50"` |
    | `weights` | `"DEFAULT"` | shipped, or torchvision's best; a path; None: random ones |
    | `weights_sha256` | None | what they must hash to |
    | `adapt` | None | names or regular expressions of the adapted sites; None: query and value |
    | | | of the last block, its last convolution, or all three (`"resnet50"`) |
    | `fused` | False | transformers: query, key and value are one site, `blocks.5.attn.qkv` |
    | `image_size` | None | side in pixels; None: 32, or 224 for torchvision's backbones |
    | `root` | None | where the data lies |
    | `download` | False | whether to fetch missing official files |
    | `cache` | None | folder of features; None: `features` beside the data; False: in memory |
    | `prefix_dtype` | `"float32"` | how they are kept; `"float16"` takes half the room |

    The bytes of the paper's abstract are those of query and value of every block, which
    `adapt=["blocks.*attn.[qv]"]` adapts, at as many times the cost as there are blocks.

    ## The Recorded Twin

    `NSR/SplitCIFAR100Recorded-v0` is the same with `dynamics="recorded"` and the `ranks` 2 and 8:
    what a visit does is drawn from live visits that were recorded for the same visited task, the
    same start and the same granted rank. It needs neither images nor torch. Tasks, streams, bank,
    observations and rewards are those of this environment; `access="memoryless"` needs live
    dynamics. Outcomes ship for ten tasks and the default backbone on the default images;
    arguments that change tasks, images or backbone are refused, and the message says what was
    recorded. Since `division` follows `num_tasks`, an episode of few of the ten tasks takes
    `division=10`. `nsr-gym record` makes tables for other arguments, `RecordedEnv` plays them.

    ## Instances and Splits

    Split `"test"`: the published tasks of the chosen order, on official test images. Split
    `"train"`: the classes grouped otherwise, so that no task of one split is a task of the other
    at any M, judged on images held out of the official training images; controllers are trained
    and thresholds calibrated there. `evaluate="validation"` judges the published tasks on held-out
    training images, for decisions about them.

    In either split a task also has validation images (`val_per_class`), training images that are
    neither trained on nor judged on: the accuracy of an entry that the observation shows, and that
    the bank's retention goes by, is measured on them. Rewards, curves and `retention` are not.

    The default shows 20 test images of each class, as many for a task as on digits; for figures
    to be reported, take them all: `test_per_class=None`.

    ## Oracle and Baselines

    `oracle` recalls a task's own entry and knows which that is; `similarity` and `trial-loss`
    find it by themselves; `fresh` never recalls. `nsr-gym agents` lists all.

    ## Cost

    A visit of M = 10 is 45 updates of 32 images, 16 accuracies on 200 test images, one on 200
    validation images, and up to 8 trial loads on 128. The frozen output of the first adapted
    convolution is kept, so that with the default network all this is about 5 GFLOP, 6 after a
    recall, whose teacher answers too; with all 1,000 test images about 12. With `"vit-small-32"`
    it is about 400 and 480, with all test images 1,100 and 1,200. The frozen part is computed once
    for each image, 0.2 GFLOP (0.3), and kept on disk: 33 KB an image, 2 GB for all 60,000 (49 KB
    and 3 GB). Episodes side by side each hold the images that they are measured on in memory.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class SplitCIFAR100VectorEnv(ImagesVectorEnv):
    """`SplitCIFAR100Env`, n episodes side by side in one batched computation."""

    recipe = RECIPE
