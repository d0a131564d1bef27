"""What this machine can do for qmem, and what stands in the way.  It changes nothing and repairs nothing."""

from qmem.doctor.examine import Health, examine

__all__ = ["Health", "examine"]
