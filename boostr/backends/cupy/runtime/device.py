"""What a GPU can do, read once."""

from __future__ import annotations

from dataclasses import dataclass

import cupy


@dataclass(frozen=True)
class Caps:
    """One device. Sizes in bytes.

    Attributes:
        compute_capability: times 10, such as 90.   sms: multiprocessors.
        shared_bytes: shared memory that one block may ask for.
        driver_version: CUDA's, as the driver counts it: 13000 is 13.0.
    """

    index: int
    name: str
    compute_capability: int
    sms: int
    shared_bytes: int
    l2_bytes: int
    memory_bytes: int
    driver_version: int

    @classmethod
    def read(cls, index: int) -> Caps:
        """Of the GPU of that index."""
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        return cls(
            index=index,
            name=properties["name"].decode(),
            compute_capability=10 * properties["major"] + properties["minor"],
            sms=properties["multiProcessorCount"],
            shared_bytes=properties["sharedMemPerBlockOptin"],
            l2_bytes=properties["l2CacheSize"],
            memory_bytes=properties["totalGlobalMem"],
            driver_version=cupy.cuda.runtime.driverGetVersion(),
        )

    @property
    def arch(self) -> str:
        """What NVRTC compiles for; Hopper's own instructions need the "a"."""
        return "sm_90a" if self.compute_capability == 90 else f"sm_{self.compute_capability}"
