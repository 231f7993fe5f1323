"""Versions, the level of the compiled kernel, and the precision, for the log and the metrics."""

from __future__ import annotations

import logging

from prometheus_client.core import GaugeMetricFamily

from app.version import service_version, torch_version
from model.kernels.library import is_kernel_installed, kernel_level

NO_KERNEL = "no compiled kernel, about 4 times slower; install a C compiler and reinstall"
NO_VECTORS = "the compiled kernel is not used, about 4 times slower: it needs a processor with AVX2"

logger = logging.getLogger(__name__)


def log_start(*, on_cpu: bool) -> None:
    """Write the first line of the log: versions and the level of the kernel, or a warning if a CPU has none."""
    versions = f"swin2sr-serve {service_version()}, torch {torch_version()}"
    level = kernel_level()
    if level == "none" and on_cpu:
        logger.warning("%s: %s", versions, NO_VECTORS if is_kernel_installed() else NO_KERNEL)
    else:
        logger.info("%s, kernel %s", versions, level)


def build_info(precision: str) -> GaugeMetricFamily:
    """The metric ``swin2sr_build_info``: always 1, with versions, kernel and precision as labels."""
    labels = {
        "version": service_version(),
        "torch": torch_version(),
        "kernel": kernel_level(),
        "precision": precision,
    }
    family = GaugeMetricFamily("swin2sr_build_info", "Versions and precision; always 1.", labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family
