"""An offloading spec with a fault: one byte of whatever comes back from host memory is wrong, as after a broken copy kernel."""

from __future__ import annotations

from typing import Any

from memserve.worker.cpu_offload import CpuOffloadingWorker, CpuTieringOffloadingSpec


class FlippingSpec(CpuTieringOffloadingSpec):
    def get_worker(self, kv_caches: Any) -> Any:
        return FlippingWorker(super().get_worker(kv_caches), kv_caches)


class FlippingWorker:
    """A worker's copies, and then a wrong byte in every block that was loaded."""

    def __init__(self, worker: CpuOffloadingWorker, kv_caches: Any) -> None:
        self._worker = worker
        self._pages = [cache.tensor.view(-1) for cache in kv_caches.tensors]

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        done = self._worker.submit_load(job_id, src_spec, dst_spec)
        for pages in self._pages:
            pages.neg_()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)
