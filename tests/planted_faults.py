"""Plants faults one at a time in a copy of the project, and tells which test noticed each.

    python tests/planted_faults.py [--only AREA ...] [--out FILE]

A fault is a plausible mistake: one line that is replaced in one file. The tests named beside it are
run with -x, and the first that fails has killed the fault; if all pass, it has lived, and a test is
missing. By hand, not by CI: it takes an hour. The table goes into docs/tests.md.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch  # noqa: F401
import torchvision  # noqa: F401

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS = 900  # that the tests of one fault may take


@dataclass(frozen=True)
class Fault:
    """`tests`: names of files below tests/, without .py, the quickest first."""

    file: str
    old: str  # stands exactly once in the file
    new: str
    tests: str
    meaning: str

    @property
    def area(self) -> str:
        return self.file.partition("/")[0].removesuffix(".py")


FAULTS = [
    Fault(*row)
    for row in (
        # The decisions.
        ("gumbel_softmax.py", "dim=-1)[..., 1]", "dim=-1)[..., 0]",
         "test_gumbel_softmax", "the gate's gradient has the opposite sign"),
        ("gumbel_softmax.py", "noisy_NL2 / temperature", "logits_NL2 / temperature",
         "test_gumbel_softmax", "the gradient is that of a soft sample without its noise"),
        ("gumbel_softmax.py", "TEMPERATURE = 5.0", "TEMPERATURE = 1.0",
         "test_gumbel_softmax", "temperature 1"),
        ("gumbel_softmax.py", "return -exponential", "return exponential",
         "test_gumbel_softmax", "the noise has the opposite sign"),
        ("gumbel_softmax.py", "return (hard_NL - soft_NL).detach() + soft_NL", "return soft_NL",
         "test_gumbel_softmax", "decisions are soft in the forward pass"),
        ("gumbel_softmax.py", "logits_NL2[..., 1] > logits_NL2[..., 0]",
         "logits_NL2[..., 0] > logits_NL2[..., 1]",
         "test_gumbel_softmax", "index 0 fine-tunes: swapped logits"),
        ("gumbel_softmax.py", "[..., 1] > logits", "[..., 1] >= logits",
         "test_gumbel_softmax", "a tie fine-tunes the block"),
        ("gumbel_softmax.py", '"finetuned": (0.0, torch.inf)', '"finetuned": (torch.inf, 0.0)',
         "models/test_routed", "--policy finetuned keeps all blocks"),
        ("gumbel_softmax.py", "return gumbel_noise((num_images, num_blocks, 2), generator)",
         "return gumbel_noise((1, num_blocks, 2), generator).expand(num_images, -1, 2)",
         "test_by_hand test_main", "decisions drawn at test time are equal for all images"),
        ("agent_net.py", "unflatten(1, (-1, 2))", "unflatten(1, (2, -1)).transpose(1, 2)",
         "models/test_models", "a block's two logits lie twelve apart"),
        ("agent_net.py", "(1, 1, 1)", "(1, 1, 2)",
         "models/test_models", "the policy network is deeper than the released one"),
        # The networks.
        ("models/resnet26.py", "self.bn2 = nn.BatchNorm2d(channels_out)",
         "self.bn2 = nn.BatchNorm2d(channels_out, momentum=0.01)",
         "models/test_models", "BatchNorm momentum 0.01"),
        ("models/resnet26.py", "(0, 0, 0, 0, 0, self.missing_channels)",
         "(0, 0, 0, 0, self.missing_channels, 0)",
         "models/test_models", "the shortcut's zeros come before its channels"),
        ("models/resnet26.py", "F.avg_pool2d(", "F.max_pool2d(",
         "models/test_models", "the shortcut takes the maximum"),
        ("models/resnet26.py", "return self.bn(self.conv(images_N3HW))",
         "return F.relu(self.bn(self.conv(images_N3HW)))",
         "models/test_models", "a ReLU after the stem"),
        ("models/resnet26.py", "features_NCHW = F.relu(self.bn(x_NCHW))",
         "features_NCHW = self.bn(x_NCHW)",
         "models/test_models", "no ReLU before the pooling"),
        ("models/resnet26.py", 'mode="fan_out"', 'mode="fan_in"',
         "models/test_models", "He-normal weights over the inputs"),
        ("models/spottune.py", 'if kept_norm == "frozen":\n            self.kept',
         "if True:\n            self.kept",
         "models/test_models", "BatchNorm of the kept blocks is frozen"),
        ("models/spottune.py", "use_fine_tuned * fine_tuned + (1 - use_fine_tuned) * kept",
         "use_fine_tuned * kept + (1 - use_fine_tuned) * fine_tuned",
         "models/test_models", "the two copies of a block are swapped in training"),
        ("models/spottune.py", "pair.fine_tuned if chosen else pair.kept",
         "pair.kept if chosen else pair.fine_tuned",
         "methods/test_methods", "Global-k keeps the wrong copies"),
        ("models/routed.py", "(pair.fine_tuned, decisions_N), (pair.kept, ~decisions_N)",
         "(pair.fine_tuned, ~decisions_N), (pair.kept, decisions_N)",
         "models/test_routed", "the two copies are swapped in prediction"),
        # Methods.
        ("methods/optimizers.py", "MOMENTUM = 0.9", "MOMENTUM = 0.0",
         "models/test_models", "no momentum"),
        ("methods/optimizers.py", "POLICY_WEIGHT_DECAY = 1e-3", "POLICY_WEIGHT_DECAY = 1e-4",
         "models/test_models", "a tenth of the policy's weight decay"),
        ("methods/spottune.py", "rates.policy, POLICY_WEIGHT_DECAY",
         "rates.policy, rates.weight_decay",
         "models/test_models", "the network's weight decay on the policy network"),
        ("methods/spottune.py", "(self.net, rates.network, rates.weight_decay)",
         "(self.net, rates.network, POLICY_WEIGHT_DECAY)",
         "models/test_models", "the policy's weight decay on the network"),
        ("methods/spottune.py", "(self.net, rates.network,", "(self.net, rates.policy,",
         "models/test_models", "the policy's learning rate for the network"),
        ("methods/spottune.py", "likelier_decisions(self.policy_net(images) + noise_NL2)",
         "likelier_decisions(self.policy_net(images))",
         "models/test_routed test_by_hand", "--policy sample does not draw"),
        ("methods/baselines.py", "(net.stem, *net.blocks, *before)", "(net.stem, *net.blocks)",
         "methods/test_methods", "the feature extractor's last BatchNorm trains"),
        ("methods/baselines.py", "            module.eval()", "            module.train(mode)",
         "methods/test_methods", "running statistics of frozen blocks follow the task"),
        ("methods/baselines.py", "net.blocks[: len(net.blocks) - k]", "net.blocks[k:]",
         "methods/test_methods", "last-k trains the first k blocks"),
        ("methods/baselines.py", "self.alpha / 2", "self.alpha",
         "methods/test_methods", "L2-SP twice as strong"),
        ("methods/baselines.py", "id(weight) for weight in self.net.classifier.parameters()",
         "id(weight) for weight in self.net.head.parameters()",
         "methods/test_methods", "L2-SP leaves the last BatchNorm free"),
        ("methods/baselines.py", "(self.net, rates.network, 0.0)",
         "(self.net, rates.network, rates.weight_decay)",
         "methods/test_methods", "L2-SP has weight decay besides"),
        ("methods/global_k.py", "(share_L.sum() - self.k)", "(share_L.mean() - self.k)",
         "methods/test_methods", "Global-k compares a mean with k"),
        ("methods/global_k.py", "entropy = -(", "entropy = (",
         "methods/test_methods", "Global-k raises the entropy"),
        ("methods/global_k.py", "descending=True", "descending=False",
         "methods/test_methods", "Global-k takes the k least used blocks"),
        ("methods/global_k.py", "order[: self.k]", "order[: self.k + 1]",
         "methods/test_methods", "Global-k takes k + 1 blocks"),
        ("methods/global_k.py", ".mean(dim=0), SHARE_MOMENTUM)",
         ".mean(dim=0), 1 - SHARE_MOMENTUM)",
         "methods/test_methods", "the running share forgets all but the last batch"),
        ("methods/cost.py", "get_total_flops() // 2", "get_total_flops()",
         "methods/test_methods test_main", "a multiply-accumulate counts as two"),
        ("methods/cost.py", '"network": whole - policy', '"network": whole',
         "methods/test_methods test_main", "the policy network is counted twice"),
        # Training.
        ("engine/step.py", "epoch >= milestone", "epoch > milestone",
         "engine/test_training", "learning rates drop an epoch late"),
        ("engine/step.py", "return (done + 1 / steps) / settings.warmup",
         "return done / settings.warmup",
         "engine/test_training", "the first step of a warm-up has the rate 0"),
        ("engine/step.py", "done - settings.warmup) / length", "done) / length",
         "engine/test_training", "the cosine does not start after the warm-up"),
        ("engine/step.py", "done, length = epoch + step / steps,", "done, length = epoch,",
         "engine/test_training", "the cosine schedule moves by epochs, not by steps"),
        ("engine/step.py", "max(1, settings.epochs - 1)", "settings.epochs",
         "engine/test_training", "the last epoch has not the final temperature"),
        ("engine/step.py", "loss=loss.detach() * len(labels)", "loss=loss.detach()",
         "engine/test_training", "batches are summed as means: the loss is too small"),
        ("engine/step.py", "self.fine_tuned_L / num_images", "self.fine_tuned_L / self.steps",
         "engine/test_training", "shares are per batch"),
        ("engine/step.py", 'generator("gumbel", *seed)', 'generator("gumbel", *seed[:-1])',
         "test_by_hand test_main", "the same Gumbel noise in every epoch"),
        ("engine/step.py", "gumbel_noise((num_images, method.num_blocks, 2)",
         "torch.ones(num_images, 1, 1) * gumbel_noise((1, method.num_blocks, 2)",
         "test_by_hand test_main", "the same noise for every image"),
        ("engine/step.py", "noise[batch.positions]", "noise[: len(batch.labels_N)]",
         "test_by_hand test_main", "the same noise in every batch"),
        ("engine/step.py", "trainer.method.train(), trainer", "trainer.method, trainer",
         "test_by_hand", "from the second epoch on, training runs in evaluation mode"),
        ("engine/step.py", "return -(-num_images // batch_size)",
         "return num_images // batch_size",
         "engine/test_training engine/test_resume", "a last batch that is smaller is no step"),
        ("engine/fit.py", "seed = (settings.seed, run.task, epoch)",
         "seed = (settings.seed, epoch)",
         "test_by_hand test_main", "orders, crops and noise are the same for all tasks"),
        ("engine/fit.py", "seed = (settings.seed, run.task, epoch)",
         "seed = (0, run.task, epoch)",
         "test_by_hand", "orders, crops and noise do not depend on the seed"),
        ("engine/step.py", "return lr_multiplier(epoch, settings",
         "return lr_multiplier(epoch + 1, settings",
         "test_by_hand", "learning rates drop an epoch early"),
        ("engine/fit.py", 'group["lr"] = rate * multiplier',
         'group["lr"] = rate * (multiplier if rate == rates[0] else 1.0)',
         "test_by_hand test_main", "the policy's learning rate never drops"),
        ("engine/fit.py", 'seed, label = (settings.seed, run.task, "val")',
         'seed, label = (settings.seed, run.task, "test")',
         "test_by_hand test_main", "the record's draws are not those of a submission"),
        ("engine/fit.py", "sums.averages(len(train_data.images))",
         "sums.averages(sums.steps * settings.batch_size)",
         "test_by_hand", "averages count the last batch as a full one"),
        ("engine/fit.py", "(epoch + 1) % pace.eval_every", "epoch % pace.eval_every",
         "test_main", "--eval_every evaluates other epochs"),
        ("engine/checkpoints.py", "torch.empty_like(parameter).copy_(self.momenta[key])",
         "torch.zeros_like(parameter)",
         "test_by_hand", "momenta are lost when a run is continued"),
        ("engine/evaluation.py", 'generator("gumbel", "test", *seed)',
         'generator("gumbel", "test", *seed[:-1])',
         "test_by_hand", "val and test images get the same draws"),
        ("engine/evaluation.py", 'generator("gumbel", "test", *seed)',
         'generator("gumbel", "test", *seed[1:])',
         "engine/test_training", "draws at test time do not depend on the seed"),
        ("engine/evaluation.py", "noise[batch.positions]", "noise[: len(batch.labels_N)]",
         "engine/test_training", "draws at test time depend on the batch size"),
        ("engine/evaluation.py", "np.unique(decisions_NL, axis=0)",
         "np.unique(decisions_NL, axis=1)",
         "test_by_hand test_main", "distinct policies are counted along the wrong axis"),
        ("engine/evaluation.py", "np.bincount(decisions_NL.sum(axis=1)",
         "np.bincount(num_blocks - decisions_NL.sum(axis=1)",
         "test_by_hand", "blocks per image count the kept ones"),
        ("engine/records.py", "_, stored = parameter_counts", "stored, _ = parameter_counts",
         "methods/test_methods", "the shared source's weights count as stored"),
        ("engine/records.py", '"lr_agent": settings.lr_agent * multiplier',
         '"lr_agent": settings.lr * multiplier',
         "test_by_hand", "the record shows the wrong learning rate of the policy"),
        ("engine/transfer.py", "weight_decay=task.weight_decay", "weight_decay=5e-4",
         "test_by_hand test_main", "one weight decay for all tasks"),
        ("engine/transfer.py", "std=tuple(std)", "std=tuple(mean)",
         "test_by_hand test_main", "the mean is used as std"),
        ("engine/transfer.py", "mean, std = self.mean_std[task.name]",
         'mean, std = self.mean_std["imagenet12"]',
         "test_by_hand test_main", "all tasks are normalised as ImageNet"),
        ("engine/settings.py", '"train": ("train",)', '"train": ("train", "val")',
         "test_main", "--train_split train learns from val"),
        ("engine/training.py", "seeded_globally(settings.seed, problem",
         "seeded_globally(0, problem",
         "engine/test_transfer", "initial weights do not depend on the seed"),
        ("engine/training.py", "(settings.seed, problem.name):", "(settings.seed):",
         "engine/test_transfer", "initial weights do not depend on the task"),
        ("engine/transfer.py", 'training="train" in splits', "training=True",
         "test_by_hand test_main", "random crops in evaluation"),
        ("engine/transfer.py", 'training="train" in splits', "training=len(splits) > 1",
         "test_main", "centre crops in training where only train is learnt from"),
        ("main.py", "milestones=tuple(args.source_steps)", "milestones=recipe.milestones",
         "test_main", "the source trains with the targets' milestones"),
        ("main.py", "epochs=args.source_epochs", "epochs=args.nb_epochs",
         "test_bad_input test_main", "the source trains for the targets' epochs"),
        # Images.
        ("image_cache/orders.py", 'generator("order", *seed)', 'generator("order", *seed[:-1])',
         "image_cache/test_batches", "the same order in every epoch"),
        ("image_cache/orders.py", 'generator("crops", *seed)', 'generator("crops", *seed[:-1])',
         "image_cache/test_batches", "the same crops in every epoch"),
        ("image_cache/orders.py", 'generator("flips", *seed)', 'generator("flips", *seed[:-1])',
         "image_cache/test_batches", "the same flips in every epoch"),
        ("image_cache/orders.py", "lefts, flips & view.flip)", "lefts, flips)",
         "image_cache/test_batches", "every task is mirrored"),
        ("image_cache/orders.py", "(spare_rows + 1)", "spare_rows",
         "image_cache/test_batches", "crops never reach the lowest row"),
        ("image_cache/orders.py", "draws[1].numpy()", "draws[0].numpy()",
         "image_cache/test_batches", "crops lie on the diagonal"),
        ("image_cache/orders.py", "np.rint((images.heights", "np.floor((images.heights",
         "image_cache/test_batches test_by_hand", "centre crops round halves down"),
        ("image_cache/batches.py", "count, batch_size)\n", "count - batch_size + 1, batch_size)\n",
         "image_cache/test_batches", "the last batch is dropped"),
        ("image_cache/batches.py", "self.images.labels[order.indices[part]]",
         "self.images.labels[part]",
         "image_cache/test_batches", "labels stay in the file's order, images are shuffled"),
        ("image_cache/batches.py", "div_(255)", "div_(256)",
         "image_cache/test_batches", "pixels from 0 to 255 / 256"),
        ("image_cache/batches.py", "sub_(self._mean).div_(self._std)",
         "div_(self._std).sub_(self._mean)",
         "image_cache/test_batches", "divided by the std before the mean is subtracted"),
        ("image_cache/batches.py", "windows_NHW3.permute(", "windows_NHW3.flip(3).permute(",
         "image_cache/test_batches", "blue, green, red"),
        ("image_cache/batches.py", "slice(start + group.rank, end, group.size)",
         "slice(start, end, group.size)",
         "image_cache/test_batches", "all processes get the first one's images"),
        ("image_cache/packed.py", "(tops * image_widths + lefts)",
         "(lefts * image_widths + tops)",
         "image_cache/test_batches", "rows and columns of corners are swapped"),
        ("image_cache/packed.py", 'facts["origin"]) != (VERSION, side, origin)',
         'origin) != (VERSION, side, origin)',
         "image_cache/test_packed", "a pack of earlier annotations is used"),
        ("image_cache/packed.py", 'elif found != facts["fingerprint"]', "elif False",
         "image_cache/test_packed", "a pack of other image files is used"),
        ("image_cache/packed.py", 'f"{name}_{side}.pack"', 'f"{name}.pack"',
         "image_cache/test_packed", "packs of two sides replace each other"),
        ("image_cache/packed.py", "digest.update(self.labels.tobytes())", "pass",
         "test_faults", "changed labels are not noticed when a run is continued"),
        ("image_cache/decoding.py", "int(side * height / width)", "round(side * height / width)",
         "image_cache/test_packed", "the longer side is rounded, not cut"),
        ("image_cache/decoding.py", "Image.Resampling[reading.interpolation.upper()]",
         "Image.Resampling.BICUBIC",
         "image_cache/test_packed", "images are resized by another filter"),
        # Annotations and the ten tasks.
        ("imdbfolder_coco.py", "return sorted(category_ids)", "return category_ids",
         "test_imdbfolder_coco", "labels follow the order in which categories are listed"),
        ("imdbfolder_coco.py", "coco.imgToAnns.get(image_id, ())",
         'coco.dataset["annotations"][len(labels) :][:1]',
         "test_imdbfolder_coco", "labels are joined by position"),
        ("imdbfolder_coco.py", "return PackedImages.merged(parts)",
         "return PackedImages.merged(parts[:1])",
         "test_by_hand test_main", "trainval learns from train alone"),
        ("imdbfolder_coco.py", "return View(resize, resize, flip",
         "return View(crop, crop, flip",
         "test_imdbfolder_coco test_main", "targets are evaluated at the crop's size"),
        ("imdbfolder_coco.py", "if training and task.train_crop", "if task.train_crop",
         "test_imdbfolder_coco", "random crops in evaluation and submissions"),
        ("imdbfolder_coco.py", "flip=task.train_flip)", "flip=False)",
         "test_imdbfolder_coco", "the source is not mirrored"),
        ("imdbfolder_coco.py", "if not task.owns(int(i))", "if False",
         "test_imdbfolder_coco", "ids of another task are taken"),
        ("decathlon.py", "/ max_error) ** 2", "/ max_error)",
         "test_decathlon", "S without its square"),
        ("decathlon.py", "max(0.0, 1 - (100 - accuracy) / max_error)",
         "(1 - (100 - accuracy) / max_error)",
         "test_decathlon", "an error beyond E_max brings points again"),
        ("decathlon.py", "3_333, 79.32, 5e-4", "3_333, 88.94, 5e-4",
         "test_decathlon", "aircraft has dtd's E_max"),
        ("decathlon.py", "6.90, 0.0, CENTRE", "6.90, 5e-4, CENTRE",
         "test_decathlon", "svhn has aircraft's weight decay"),
        ("decathlon.py", "24.62, 5e-4, CENTRE", "24.62, 5e-4",
         "test_imdbfolder_coco", "omniglot is cropped at random"),
        ("decathlon.py", "number * IDS_PER_TASK + 1", "number * IDS_PER_TASK",
         "test_decathlon engine/test_transfer test_main", "category ids count from 0"),
        # The challenge.
        ("challenge/predictions.py", "images.categories[predictions.labels]",
         "(images.categories[predictions.labels] + 1)",
         "test_by_hand", "category ids of a submission are off by one"),
        ("challenge/predictions.py", "images.categories[predictions.labels]",
         "(task.first_category_id + predictions.labels)",
         "test_by_hand", "a submission counts the classes that a folder lacks"),
        ("challenge/predictions.py", "training=False", "training=True",
         "test_by_hand test_main", "random crops in a submission"),
        ("challenge/predictions.py", "image_ids = images.image_ids.tolist()",
         "image_ids = sorted(images.image_ids.tolist())",
         "test_by_hand", "answers are joined with sorted ids"),
        ("challenge/predictions.py", "(seed, task.name, split)", "(seed, split)",
         "test_by_hand", "draws of a submission do not depend on the task"),
        ("challenge/scoring.py", "answers.get(image) == [right]",
         "right in answers.get(image, [])",
         "challenge/test_score", "of two answers one right one is enough"),
        ("challenge/scoring.py", "100 * correct / len(one.by_image)",
         "100 * correct / max(1, len(answers.keys() & one.by_image.keys()))",
         "challenge/test_score", "an image without an answer is not wrong"),
        ("challenge/scoring.py", "TASK_BY_NAME[name].max_error", "TASKS[0].max_error",
         "challenge/test_score", "all tasks have aircraft's E_max"),
        ("challenge/scoring.py", "for task in COLUMNS]", "for task in TASK_BY_NAME]",
         "challenge/test_score", "accuracies stand under other tasks' heads"),
        ("challenge/scoring.py", "fmean(accuracies.values()) if accuracies",
         "sum(accuracies.values()) / len(tasks) if accuracies",
         "challenge/test_score", "tasks without answers count as 0 in the mean"),
        ("challenge/submissions.py", "found.categories[found.labels]",
         "found.categories[found.labels - 1]",
         "challenge/test_score", "labels are another class's"),
        # Weights.
        ("weights/source_weights.py", "[: stage - 1]) + block", "[: stage - 1]) + 3 - block",
         "weights/test_source_weights", "the blocks of a stage are read backwards"),
        ("weights/source_weights.py", '"conv2.1.conv": "conv2"', '"conv2.1.conv": "conv1"',
         "weights/test_source_weights", "a block's second convolution takes the first one's place"),
        ("weights/source_weights.py", "**self.tensors, **classifier",
         '**{n: t for n, t in self.tensors.items() if "running" not in n}, **classifier',
         "weights/test_source_weights", "targets start without the source's running statistics"),
        ("weights/legacy_t7.py", "storage.start + offset * itemsize", "storage.start",
         "weights/test_legacy_t7", "tensors that share a storage get its first elements"),
        ("weights/mean_std.py", 'in ("mean", "std"))', 'in ("std", "mean"))',
         "weights/test_mean_std", "mean and std are swapped"),
        ("weights/mean_std.py", "in_datadir if in_datadir.exists() else own", "own",
         "weights/test_mean_std", "the data folder's own means are ignored"),
        ("weights/mean_std.py", "tuple(float(each) for each in numbers)",
         "tuple(float(each) for each in reversed(numbers))",
         "weights/test_mean_std", "means are blue, green, red"),
        # Several tasks at once.
        ("launch/side_by_side.py", "key=pixels_left, reverse=True", "key=pixels_left",
         "launch/test_side_by_side", "the shortest task starts first"),
        ("launch/side_by_side.py", "return epochs_left * images", "return epochs * images",
         "launch/test_side_by_side", "epochs that are done count as work"),
        ("launch/side_by_side.py", "images * view.height * view.width", "images",
         "launch/test_side_by_side", "the size of images does not count as work"),
        ("launch/side_by_side.py", '"--threads", str(threads)', '"--threads", "1"',
         "launch/test_side_by_side", "every job computes on one thread"),
        ("launch/side_by_side.py", "range(1, self._retries + 2)", "range(1, self._retries + 1)",
         "launch/test_side_by_side", "a task that dies is tried once less"),
        ("launch/side_by_side.py", "status in MISTAKE and last_line", "last_line",
         "launch/test_side_by_side", "what dies after an error line is not tried again"),
        ("launch/slurm.py", "number == preemption_signal() or is_running_job",
         "is_running_job",
         "launch/test_cluster", "a job at its time limit is not put back"),
        ("launch/slurm.py", "if place.global_rank != 0:", "if False:",
         "launch/test_cluster", "every node puts the job back"),
        ("launch/slurm.py", "is_host={int(own == 0)}", "is_host={int(own != 0)}",
         "launch/test_cluster", "the torchruns wait for the wrong machine"),
        # The report.
        ("reporting/statistics.py", "cls(fmean(values), stdev(values)",
         "cls(fmean(values), stdev(values) * (1 - 1 / len(values)) ** 0.5",
         "reporting/test_report", "the deviation divides by n"),
        ("reporting/statistics.py", "set.intersection(*(set(scores.get(task, {}))",
         "set(scores[tasks[0]]).intersection(*(set(scores.get(task) or scores[tasks[0]])",
         "reporting/test_report", "a method without a task has a mean over the others"),
        ("reporting/statistics.py", "source + sum(millions)", "sum(millions)",
         "reporting/test_report", "the source network is not stored"),
        ("reporting/statistics.py", "all(scores.get(task) for", "any(scores.get(task) for",
         "reporting/test_report reporting/test_figures", "means of shared tasks hold others too"),
        ("reporting/statistics.py", "fmean(values) for values in zip",
         "max(values) for values in zip",
         "reporting/test_figures", "shares over seeds are the largest, not the mean"),
        ("reporting/runs.py", '"blocks": sum(shares)', '"blocks": sum(shares) / len(shares)',
         "reporting/test_report", "the number of blocks is a share"),
        ("reporting/runs.py", "for epoch in history) / 60", "for epoch in history) / 3600",
         "reporting/test_report", "minutes are hours"),
        ("reporting/runs.py", "policy in own[1:]", "policy in own",
         "reporting/test_runs", "a method's own way to decide is listed apart"),
        ("reporting/runs.py", "[count / sum(counts) for count in counts]",
         "[count / len(counts) for count in counts]",
         "reporting/test_figures", "shares of images are divided by the blocks"),
        ("reporting/tables.py", "if task != study.source_task]", "if task]",
         "reporting/test_report", "the mean of the targets holds the source"),
        ("reporting/tables.py", "get(task), 2) for task in COLUMNS",
         "get(task), 2) for task in sorted(COLUMNS)",
         "reporting/test_report", "published accuracies stand under other tasks' heads"),
        ("reporting/comparability.py", "number != TASK_BY_NAME[task].num_test",
         "number < TASK_BY_NAME[task].num_val",
         "reporting/test_runs", "scores of other test images count as comparable"),
        ("reporting/comparability.py", '"crop": (64', '"crop": (72',
         "reporting/test_runs", "crops of 72 pixels count as published"),
        ("reporting/study.py", 'HASHES = ("data_sha256", "val_sha256")', "HASHES = ()",
         "reporting/test_runs", "runs on other images stand in one table"),
        ("reporting/extremes.py", "(-number[image_id], image_id)", "(number[image_id], image_id)",
         "reporting/test_figures", "the most fine-tuned images are not the most"),
        ("reporting/figures.py", "ListedColormap([KEPT, FINE_TUNED])",
         "ListedColormap([FINE_TUNED, KEPT])",
         "reporting/test_figures", "colours of decisions are swapped"),
        ("reporting/figures.py", "mean - std, mean + std", "mean - 2 * std, mean + 2 * std",
         "reporting/test_figures", "the band is two deviations"),
        ("reporting/figures.py", "lambda x: x / source, lambda x: x * source",
         "lambda x: x * source, lambda x: x / source",
         "reporting/test_figures", "the axis of multiples is upside down"),
        ("reporting/figures.py", "in enumerate(share))", "in enumerate(share, 1))",
         "reporting/test_figures", "the mean number of blocks is one too many"),
        ("reporting/figures.py", "over_tasks(val_scores(study).get(variant, {}), tasks)",
         "over_tasks(val_scores(study).get(variant, {}), tasks[:1])",
         "reporting/test_figures", "accuracy against parameters is of the first task alone"),
        ("reporting/plots.py", "[100 * share for share in shares[task]] for task in tasks]",
         "[100 * share for share in shares[task]] for task in sorted(tasks)]",
         "reporting/test_figures", "rows of shares stand beside other tasks' names"),
        ("reporting/plots.py", '"cross-entropy": {"train_loss": "train", "val_loss": val}',
         '"cross-entropy": {"train_loss": val, "val_loss": "train"}',
         "reporting/test_figures", "curves of a run: train and val are swapped"),
        ("reporting/run_table.py", "sum(tested) / len(tested)", "sum(tested) / len(last)",
         "reporting/test_run_table", "a task without figures counts as 0 in the mean"),
    )
]  # fmt: skip


def check_all_are_there() -> None:
    """End with a message unless each old text stands exactly once in its file."""
    wrong = []
    for fault in FAULTS:
        path = REPOSITORY / fault.file
        count = path.read_text().count(fault.old) if path.exists() else 0
        if count != 1:
            wrong.append(f"{fault.file}: found {count} times, expected once: {fault.old!r}")
        wrong += [f"no file {p}" for p in paths_of(fault) if not (REPOSITORY / p).exists()]
    if wrong:
        sys.exit("\n".join(wrong))


def paths_of(fault: Fault) -> list[str]:
    return [f"tests/{name}.py" for name in fault.tests.split()]


def copy_of_the_project(folder: Path) -> Path:
    """What git tracks, with changes that are not committed."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True)
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


class Failures:
    """A plugin of pytest that notes which tests failed."""

    def __init__(self) -> None:
        self.names = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def run_tests(folder: Path, arguments: list[str], result: Connection) -> None:
    """In a process of its own: pytest's exit code, the tests that failed, what was printed."""
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    # A file that is changed twice within a second may look unchanged to Python's cache.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    sys.path.pop(0)  # the tests of the original
    printed, failures = io.StringIO(), Failures()
    with contextlib.redirect_stdout(printed):
        status = pytest.main(["-p", "no:cacheprovider", *arguments], plugins=[failures])
    result.send((int(status), failures.names, printed.getvalue()))


def failing(folder: Path, arguments: list[str]) -> list[str]:
    """The tests that fail in a copy of the project. Ends this script if they could not run."""
    context = multiprocessing.get_context("fork")  # with torch imported, which takes seconds
    result, sent = context.Pipe(duplex=False)
    process = context.Process(target=run_tests, args=(folder, arguments, sent))
    process.start()
    sent.close()
    try:
        if not result.poll(SECONDS):
            return [f"no end within {SECONDS} seconds"]
        status, names, printed = result.recv()
    finally:
        process.kill()
        process.join()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(f"The tests did not run: {' '.join(arguments)}\n{printed[-2000:]}")
    return names


def killer_of(fault: Fault, folder: Path, ignored: list[str]) -> str | None:
    """The first test that fails with the fault in the copy; None if all pass."""
    path = folder / fault.file
    right = path.read_text()
    path.write_text(right.replace(fault.old, fault.new))
    try:
        names = failing(folder, ["-x", *ignored, *paths_of(fault)])
    finally:
        path.write_text(right)
    return names[0].partition("[")[0].removeprefix("tests/") if names else None


def table(killers: dict[Fault, str | None]) -> str:
    """How many faults of each area were killed; and by test, which."""
    areas, tests = {}, {}
    for fault, killer in killers.items():
        areas.setdefault(fault.area, []).append(killer is not None)
        tests.setdefault(f"`{killer}`" if killer else "**lived**", []).append(fault.meaning)
    counts = [f"{area} {sum(found)} of {len(found)}" for area, found in areas.items()]
    killed = sum(map(sum, areas.values()))
    lines = [f"Killed: {killed} of {len(killers)}. By area: {', '.join(counts)}.", ""]
    lines += ["| test | faults that it killed |", "|---|---|"]
    lines += [f"| {test} | {'; '.join(meanings)} |" for test, meanings in tests.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    areas = sorted({fault.area for fault in FAULTS})
    parser.add_argument("--only", nargs="+", choices=areas, default=areas, metavar="AREA")
    parser.add_argument("--out", type=Path, help="write the table here; unset: print it")
    args = parser.parse_args()
    check_all_are_there()
    chosen = [fault for fault in FAULTS if fault.area in args.only]
    killers = {}
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as folder:
        copy = copy_of_the_project(Path(folder))
        broken = failing(copy, sorted({path for fault in chosen for path in paths_of(fault)}))
        for name in broken:
            print(f"NOT COUNTED, since it fails without any fault: {name}")
        ignored = [f"--deselect={name}" for name in broken]
        for number, fault in enumerate(chosen, 1):
            killer = killer_of(fault, copy, ignored)
            killers[fault] = killer
            said = killer or "LIVED"
            print(f"{number}/{len(chosen)} {fault.file}: {fault.meaning}: {said}", flush=True)
    if args.out:
        args.out.write_text(table(killers) + "\n")
    else:
        print(table(killers))
    sys.exit(None in killers.values())


if __name__ == "__main__":
    main()
