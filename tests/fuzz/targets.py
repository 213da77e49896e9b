"""Every parser of files from outside, as a target: hostile bytes in, an InputError or a valid value out."""

from input_targets import INPUT_TARGETS
from output_targets import OUTPUT_TARGETS
from target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (*INPUT_TARGETS, *OUTPUT_TARGETS)}
